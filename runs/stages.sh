# To be sourced. stage RECIPE [KEY=VALUE]... trains, or goes on; it ends the script where a slice of time is over.
stage() {
  local said
  said=$(xycodec train "$1" --resume "${@:2}")
  echo "$said"
  [[ $said == *": finished at step "* ]] || exit 0
}

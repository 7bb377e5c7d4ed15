#!/usr/bin/env bash
# Ten minutes of one GPU, on a machine without network that takes little in and gives little back:
#   runs/gpu_ten_minutes.sh prepare RECIPE BUNDLE --weights SOURCE [--loads N] [--wheels FOLDER]   here
#   bash LOAD/gpu_ten_minutes.sh train LOAD... --out RESULT --minutes 9                            there
#   runs/gpu_ten_minutes.sh merge RESULT FOLDER --weights SOURCE                                   here
# Each has --help. There, a plain python3 with torch is enough: wheels of what else it lacks travel in the bundle.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
if [ "${1:-}" != train ]; then
  [ -d "$here/.venv/bin" ] && PATH="$here/.venv/bin:$PATH"
  export PYTHONPATH="$here/src${PYTHONPATH:+:$PYTHONPATH}"
  exec "${PYTHON:-python3}" "$here/runs/gpu_ten_minutes.py" "$@"
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
wheels=()
for load in "${@:2}"; do
  [ -d "$load" ] || continue
  for wheel in "$load"/wheels/*.whl; do [ -f "$wheel" ] && wheels+=("$wheel"); done
  if [ -f "$load/code.tar.gz" ]; then tar -xzf "$load/code.tar.gz" -C "$site"; fi
done
if [ ${#wheels[@]} -gt 0 ]; then
  "${PYTHON:-python3}" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site/packages" "${wheels[@]}"
fi
export PYTHONPATH="$site/src:$site/packages${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python3}" "$site/runs/gpu_ten_minutes.py" "$@"

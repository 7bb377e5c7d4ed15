"""`python -m xycodec`, which is how torchrun starts the command line."""

from xycodec.cli.app import main

main()

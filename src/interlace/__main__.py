"""`python -m interlace` is the command `interlace`."""

from interlace.cli import main

main()

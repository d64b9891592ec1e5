"""`python -m interlace.engines.host MODEL`: an engine host, started by the gateway (the name is for `ps` to show)."""

from interlace.engines.host.server import main

main()

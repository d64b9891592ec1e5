"""What the service manager is told (sd_notify): a datagram to the socket that `NOTIFY_SOCKET` names, if any."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

_log = logging.getLogger(__name__)

READY, STOPPING = "READY=1", "STOPPING=1"


def notify(state: str, env: Mapping[str, str] | None = None) -> bool:
    """Tell it; whether there was somebody to tell. A manager that cannot be told is logged, and no reason to end."""
    address = (os.environ if env is None else env).get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):  # systemd names no others to services
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # in Linux's abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
            link.connect(address)
            link.sendall(state.encode())
    except OSError as error:
        _log.warning("the service manager could not be told", extra={"fields": {"state": state, "error": str(error)}})
        return False
    return True

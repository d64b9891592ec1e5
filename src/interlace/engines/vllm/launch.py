"""`python launch.py PARENT PROGRAM ARGUMENT...`: become that program, and end when the process PARENT, our own, does.

The kernel remembers the wish when one program becomes another. A shell would do neither.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

SET_PARENT_DEATH_SIGNAL = 1


def main(arguments: list[str], parent: int) -> None:
    """Never returns; status 127 where there is no such program."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before we could wish
            os._exit(1)
    try:
        os.execv(arguments[0], arguments)  # noqa: S606 - the very point: no shell
    except OSError as error:
        sys.stderr.write(f"ERROR {arguments[0]} cannot be started: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[2:], int(sys.argv[1]))

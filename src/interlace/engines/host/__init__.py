"""The fence around native code: a local engine in a process of its own, supervised, behind a Unix socket.

`engine.py` is what the gateway holds, `supervisor.py` keeps its process (`process.py`) alive, `client.py` and
`protocol.py` are the wire, `server.py` and `stepper.py` run inside the process.
"""

from interlace.engines.host.audience import short_address
from interlace.engines.host.engine import AttachedEngine, HostedEngine
from interlace.engines.host.protocol import Failure, FrameError, FrameReader, frame_of
from interlace.engines.host.supervisor import RestartPolicy

__all__ = [
    "AttachedEngine",
    "Failure",
    "FrameError",
    "FrameReader",
    "HostedEngine",
    "RestartPolicy",
    "frame_of",
    "short_address",
]

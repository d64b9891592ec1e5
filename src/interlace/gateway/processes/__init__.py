"""Many gateway processes behind one port: a supervisor, a coordinator that has the ledger, and workers that answer.

    supervisor ── binds the port, starts the others and starts again what dies; knows nothing of requests
      coordinator ── the one that writes to the ledger, has the engine hosts, and tells everybody what changes
      worker … ── the gateway as it is with one process, but for what it asks the coordinator

See docs/explanation/processes.md.
"""

from __future__ import annotations

from interlace.gateway.processes.supervisor import serve_many

__all__ = ["serve_many"]

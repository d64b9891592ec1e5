"""Engines that live elsewhere: a provider's model, as an `Engine` like any other."""

from interlace.engines.remote.engine import RemoteEngine
from interlace.engines.remote.providers import usual_of

__all__ = ["RemoteEngine", "usual_of"]

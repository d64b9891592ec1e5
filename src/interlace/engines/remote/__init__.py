"""Engines that live elsewhere: any server that speaks OpenAI's API, as an `Engine` like any other."""

from interlace.engines.remote.engine import RemoteEngine

__all__ = ["RemoteEngine"]

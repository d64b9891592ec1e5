"""Interlace: open checkpoints underneath, private layers and closed APIs on top, one endpoint in front."""

__version__ = "0.1.0"

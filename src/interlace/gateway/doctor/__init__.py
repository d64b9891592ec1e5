"""`interlace doctor`: what could be wrong with an installation, one module for each part of the world it stands in."""

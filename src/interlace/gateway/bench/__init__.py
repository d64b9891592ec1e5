"""`interlace bench`: how fast one model answers through the endpoint, how much at once, and for what money."""

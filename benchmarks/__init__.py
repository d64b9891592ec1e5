"""`make bench`: what the gateway costs beside its peers, how fast the engine is, and what the way through HTTP costs.

Every contestant is a process of its own (`peers/`) that loads once and then answers one JSON line with another. The
parent lets them take turns, A B C A B C, for every shape and round, so that drift of the machine hits all alike, and
compares only runs of the same round with each other.
"""

"""The contestants, each a program that reads jobs and writes measurements as JSON lines: see `lines.py`.

They share no code but that loop, and those of other environments need nothing of ours installed.
"""

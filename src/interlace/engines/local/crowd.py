"""Whether one more request may wait in the engine: as many as fit the queue, and then an equal part of it for each.

A full queue is full for those who fill it. An organisation may still queue what its part of `most` holds, divided by
those organisations that wait and itself, and so may an adapter of its part of that; and who has nothing waiting may
queue one request, whatever it is. So nobody's flood has another refused, and little waits beyond `most`: the second
organisation brings half of it at most, the third a third.
"""

from __future__ import annotations

from collections import Counter

Group = tuple[str, str]
"""An organisation and its adapter."""


def crowded_out(waiting: Counter[Group], who: Group, places: int, most: int) -> bool:
    """Whether a request of `places` sequences is refused, where the queue is full for all together. `waiting`: how many
    sequences of each group wait."""
    organisation, adapter = who
    own = {group[1]: number for group, number in waiting.items() if group[0] == organisation and number}
    others = {group[0] for group, number in waiting.items() if number}
    part = most // len(others | {organisation})
    if _fits(sum(own.values()), places, part):
        return False
    return not _fits(own.get(adapter, 0), places, part // len(own.keys() | {adapter}))


def _fits(waiting: int, places: int, part: int) -> bool:
    return not waiting or waiting + places <= part

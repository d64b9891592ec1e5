"""The loss of a run as an SVG file that needs no library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 760, 440, 70, 50, 20, 70
_BLUE, _ORANGE, _GREY = "#0072b2", "#e69f00", "#888888"  # Okabe and Ito's, told apart by the colour-blind too
_LINES = 5

Points = Sequence[tuple[int, float]]


def draw(train: Points, held_out: Points, title: str, words: str = "") -> str:
    """Both curves over the steps, with a line of words below."""
    every = [*train, *held_out] or [(0, 0.0)]
    last = max(1, *(step for step, _ in every))
    low, high = min(loss for _, loss in every), max(loss for _, loss in every)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)

    def at(step: float, loss: float) -> tuple[float, float]:
        wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + wide * step / last, _TOP + tall * (high - loss) / (high - low)

    def parts() -> Iterator[str]:
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
            'font-size="13"><rect width="100%" height="100%" fill="white"/>'
        )
        yield f'<text x="{_LEFT}" y="24" font-size="16">Loss of {escape(title)}</text>'
        for number in range(_LINES + 1):
            loss = low + (high - low) * number / _LINES
            _, y = at(0, loss)
            yield f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>'
            yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="{_GREY}">{loss:.2f}</text>'
            step = round(last * number / _LINES)
            x, _ = at(step, low)
            yield f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle" fill="{_GREY}">{step}</text>'
        yield f'<text x="{_WIDTH / 2}" y="{_HEIGHT - _BOTTOM + 38}" text-anchor="middle" fill="{_GREY}">steps</text>'
        yield f'<text x="{_LEFT}" y="{_HEIGHT - 10}" fill="{_GREY}">{escape(words)}</text>'
        for number, (name, colour, points) in enumerate(
            (("learnt from", _BLUE, train), ("held out", _ORANGE, held_out))
        ):
            places = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in points)
            yield f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>'
            yield f'<text x="{_WIDTH - _RIGHT}" y="{24 + 16 * number}" text-anchor="end" fill="{colour}">{name}</text>'
        yield "</svg>\n"

    return "\n".join(parts())

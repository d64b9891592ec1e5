"""The figures of a measurement to look at: bars in the terminal, and an SVG file that needs no library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from interlace.gateway.bench.figures import Level, percentile

_WIDTH, _HEIGHT = 960, 660
_PANEL_WIDTH, _PANEL_HEIGHT = 400, 190
_BLUE, _ORANGE = "#0072b2", "#e69f00"  # Okabe and Ito's, told apart by the colour-blind too
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_BAR_CELLS = 40

Value = Callable[[Level], float | None]


@dataclass(frozen=True, slots=True)
class _Series:
    name: str
    colour: str
    value: Value


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    series: tuple[_Series, ...]


def _milliseconds(seconds: Callable[[Level], Sequence[float]], percent: int) -> Value:
    def value(level: Level) -> float | None:
        found = percentile(seconds(level), percent)
        return None if found is None else 1000 * found

    return value


_PANELS = (
    _Panel("Tokens a second, all streams together", (_Series("", _BLUE, lambda level: level.tokens_per_second),)),
    _Panel("Tokens a second of one stream", (_Series("", _BLUE, lambda level: level.stream_tokens_per_second),)),
    _Panel(
        "Time to first token, ms",
        (
            _Series("median", _BLUE, _milliseconds(lambda level: level.firsts, 50)),
            _Series("95 of 100", _ORANGE, _milliseconds(lambda level: level.firsts, 95)),
        ),
    ),
    _Panel(
        "Time between tokens, ms",
        (
            _Series("median", _BLUE, _milliseconds(lambda level: level.gaps, 50)),
            _Series("95 of 100", _ORANGE, _milliseconds(lambda level: level.gaps, 95)),
        ),
    ),
)


def bars(levels: Sequence[Level], *, letter: str = "█") -> list[str]:
    """A line for each level: tokens a second of all streams, as a bar."""
    rates = [(level.streams, level.tokens_per_second or 0.0) for level in levels]
    greatest = max((rate for _, rate in rates), default=0.0)
    if greatest <= 0:
        return []
    names = [f"{streams}" for streams, _ in rates]
    width = max(map(len, names))
    return [
        f"{name:>{width}}  {letter * max(round(_BAR_CELLS * rate / greatest), rate > 0)} {rate:,.1f}"
        for name, (_, rate) in zip(names, rates, strict=True)
    ]


def svg(title: str, subtitle: str, levels: Sequence[Level]) -> str:
    """A picture of four panels, a group of bars for each number of streams."""
    return "\n".join(_lines(title, subtitle, levels)) + "\n"


def _lines(title: str, subtitle: str, levels: Sequence[Level]) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12">'
    )
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    yield _text(60, 34, title, size=18, weight="bold")
    yield _text(60, 56, subtitle, fill="#555555")
    for number, panel in enumerate(_PANELS):
        left, top = 60 + (number % 2) * 470, 108 + (number // 2) * 280
        yield from _panel(panel, levels, left, top)
    yield "</svg>"


def _panel(panel: _Panel, levels: Sequence[Level], left: float, top: float) -> Iterator[str]:
    values = [[series.value(level) for series in panel.series] for level in levels]
    highest = max((value for group in values for value in group if value is not None), default=0.0)
    step = _step(highest)
    top_value = step * max(1, -(-1.08 * highest // step))  # with room for the number on the highest bar
    bottom = top + _PANEL_HEIGHT
    yield _text(left, top - 14, panel.title, weight="bold")
    for number, series in enumerate(one for one in panel.series if one.name):
        at = left + 230 + 85 * number
        yield f'<rect x="{at}" y="{top - 23}" width="9" height="9" fill="{series.colour}"/>'
        yield _text(at + 13, top - 14, series.name, size=11)
    line = 0.0
    while line <= top_value * 1.0001:
        y = bottom - _PANEL_HEIGHT * line / top_value
        yield f'<line x1="{left}" x2="{left + _PANEL_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>'
        yield _text(left - 6, y + 4, f"{line:,g}", anchor="end", size=11, fill="#555555")
        line += step
    room = _PANEL_WIDTH / max(len(levels), 1)
    width = min(0.8 * room / len(panel.series), 60.0)
    for place, (level, group) in enumerate(zip(levels, values, strict=True)):
        middle = left + room * (place + 0.5)
        for number, (series, value) in enumerate(zip(panel.series, group, strict=True)):
            if value is not None:
                height = _PANEL_HEIGHT * value / top_value
                x = middle + (number - len(panel.series) / 2) * width
                yield (
                    f'<rect x="{x + 1:.1f}" y="{bottom - height:.1f}" width="{width - 2:.1f}" height="{height:.1f}" '
                    f'fill="{series.colour}"/>'
                )
                shown = f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
                yield _text(x + width / 2, bottom - height - 3, shown, anchor="middle", size=10)
        word = "stream" if level.streams == 1 else "streams"
        yield _text(middle, bottom + 17, f"{level.streams} {word}", anchor="middle", size=11)


def _step(highest: float) -> float:
    """A round distance between lines, so that there are three to six of them."""
    if highest <= 0:
        return 1.0
    unit = 10.0 ** int(f"{highest / 5:e}".partition("e")[2])
    return next(unit * step for step in _STEPS if unit * step >= highest / 5)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal",
    fill: str = "#222222",
) -> str:  # fmt: skip
    clean = "".join(letter for letter in text if letter.isprintable())
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{fill}">{escape(clean)}</text>'
    )

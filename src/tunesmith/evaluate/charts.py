"""The drawings of the report, as SVG that needs no script: intervals, curves, a trade-off.

Widths are in percent and heights in pixels, so a drawing fills any column and its text keeps its
size. Colours and strokes are the style sheet's: the elements carry classes only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]
BAND, AXIS = 46, 24
PLOT = 220
MOST_POINTS = 600
LONGEST_LABEL = 24


@dataclass(frozen=True, slots=True)
class Interval:
    """One line of a forest plot: an estimate with its 95 % interval."""

    label: str
    value: float
    low: float
    high: float
    strong: bool = False


def number(value: object, sign: bool = False) -> str:
    """A value as the page writes it: counts in full, measurements with 3 significant digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return str(value)
    if isinstance(value, int):
        text = f"{value:,}"
    elif abs(value) >= 999.5:
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.3g}".rstrip(".")
    return ("+" if sign and value > 0 else "") + text.replace("-", "\N{MINUS SIGN}")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-3):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def forest(title: str, intervals: Sequence[Interval], reference: float | None = None) -> Markup:
    """Estimates with their intervals on one axis; `reference` draws a line, as at no difference."""
    bounds = [edge for line in intervals for edge in (line.low, line.high, line.value)]
    marks = ticks(*_span(bounds if reference is None else [*bounds, reference]))
    foot = BAND * len(intervals) + 4
    parts = [
        Markup('<svg class="forest" role="img" aria-label="{}" width="100%" height="{}">').format(
            title + ": " + "; ".join(f"{line.label} {_bounds(line)}" for line in intervals),
            foot + AXIS,
        )
    ]
    parts += _x_axis(marks, foot)
    if reference is not None:
        at = _percent(reference, marks)
        parts.append(_line("reference", at, at, 0, foot))
    for index, line in enumerate(intervals):
        top = index * BAND
        parts.append(
            Markup(
                '<g class="{}"><text x="0" y="{}">{}</text>'
                '<text class="figure" x="100%" y="{}" text-anchor="end">{}</text>'
            ).format(
                "strong" if line.strong else "", top + 17, _short(line), top + 17, _bounds(line)
            )
        )
        y = top + 32
        parts.append(_line("span", _percent(line.low, marks), _percent(line.high, marks), y, y))
        parts += [
            _line("cap", _percent(edge, marks), _percent(edge, marks), y - 4, y + 4)
            for edge in (line.low, line.high)
        ]
        parts.append(_dot("dot", _percent(line.value, marks), y))
        parts.append(Markup("</g>"))
    return Markup("").join([*parts, Markup("</svg>")])


def curves(train: Sequence[Point], validation: Sequence[Point], best: float | None) -> Markup:
    """Loss against step: every train step, their running mean, and the validation points.

    The points are (step, loss), sorted by step; at least one of both lists is not empty.
    """
    everything = [*train, *validation]
    rows = ticks(*_span([loss for _, loss in everything]), about=4)
    columns = ticks(0, max(step for step, _ in everything))

    def y(loss: float) -> float:
        return PLOT * (1 - _share(loss, rows)) + 8

    parts = [_line("grid", 0, 100, y(mark), y(mark)) for mark in rows]
    parts += _x_axis(columns, PLOT + 10, lines=False)
    drawn = (("raw", train), ("train", smooth(train)), ("validation", validation))
    paths = [_path(name, points, columns, rows) for name, points in drawn if len(points) > 1]
    parts.append(
        Markup(
            '<svg y="8" width="100%" height="{}" viewBox="0 0 1000 1000" '
            'preserveAspectRatio="none">{}</svg>'
        ).format(PLOT, Markup("").join(paths))
    )
    parts += [_dot("validation", _percent(step, columns), y(loss)) for step, loss in validation]
    if best is not None:
        parts += _best(best, _percent(best, columns))
    return _plot(_left(rows, y), _told(train, validation), parts, PLOT + 36)


@dataclass(frozen=True, slots=True)
class Scored:
    """A score with its 95 % interval, of a model that learned from so many rows."""

    rows: int
    value: float
    low: float
    high: float


def learning(
    points: Sequence[Scored], forecast: Scored | None, goal: float | None, metric: str
) -> Markup:
    """Score against rows, each doubling as wide as the next: points, their means, the forecast.

    Args:
        points: sorted by rows; several of one size are trainings with other seeds.
        forecast: what is expected of more rows than any point has.
        goal: draws a line.
    """
    told = [*points, *([forecast] if forecast else [])]
    edges = [edge for point in told for edge in (point.low, point.high)]
    marks = ticks(*_span(edges if goal is None else [*edges, goal]), about=4)
    sizes = sorted({point.rows for point in told})
    wide = _span([math.log2(rows) for rows in (*sizes, 2 * sizes[0])])

    def x(rows: float) -> float:
        return 8 + 84 * (math.log2(rows) - wide[0]) / (wide[1] - wide[0])

    def y(value: float) -> float:
        return PLOT * (1 - _share(value, marks)) + 8

    parts = [_line("grid", 0, 100, y(mark), y(mark)) for mark in marks]
    parts += [
        Markup('<text class="tick" x="{:.2f}%" y="{}" text-anchor="middle">{:,}</text>').format(
            x(rows), PLOT + 26, rows
        )
        for rows in sizes
    ]
    if goal is not None:
        parts.append(_line("reference", 0, 100, y(goal), y(goal)))
    means = [(rows, _mean([p.value for p in points if p.rows == rows])) for rows in sizes]
    means = [(rows, value) for rows, value in means if not math.isnan(value)]
    parts += [
        _line("curve", x(a), x(b), y(left), y(right))
        for (a, left), (b, right) in itertools.pairwise(means)
    ]
    if forecast is not None:
        rows, value = means[-1]
        parts.append(_line("best", x(rows), x(forecast.rows), y(value), y(forecast.value)))
    for point in told:
        # Trainings of one size stand beside each other.
        same = [other for other in points if other.rows == point.rows]
        shift = 1.6 * (same.index(point) - (len(same) - 1) / 2) if point in same else 0.0
        at, name = x(point.rows) + shift, "validation" if point is forecast else "dot"
        parts.append(_line("span", at, at, y(point.low), y(point.high)))
        parts.append(_dot(name, at, y(point.value)))
    return _plot(_left(marks, y), _learning_told(points, forecast, metric), parts, PLOT + 36)


def tradeoff(metric: str, spots: Sequence[tuple[str, float, float]]) -> Markup:
    """What the task gains against how far the model moves: a dot each, joined in their order.

    Args:
        metric: of the task, for those who cannot see.
        spots: (label, nats a token from the base, value of the metric), at least one.
    """
    rows = ticks(*_span([value for _, _, value in spots]), about=4)
    columns = ticks(*_span([0.0, *(away for _, away, _ in spots)]))

    def y(value: float) -> float:
        return PLOT * (1 - _share(value, rows)) + 8

    parts = [_line("grid", 0, 100, y(mark), y(mark)) for mark in rows]
    parts += _x_axis(columns, PLOT + 10, lines=False)
    places = [(label, _percent(away, columns), y(value)) for label, away, value in spots]
    for (_, x1, y1), (_, x2, y2) in itertools.pairwise(places):
        parts.append(_line("span", x1, x2, y1, y2))
    mark = Markup('<text x="{:.2f}%" y="{:.1f}" text-anchor="{}">{}</text>')
    for label, x, height in places:
        parts += [_dot("dot", x, height), mark.format(x, height - 8, _anchor(x), label)]
    told = "; ".join(
        f"{label}: {metric} {number(float(value))} at {number(float(away))} nats"
        for label, away, value in spots
    )
    return _plot(_left(rows, y), told, parts, PLOT + 36)


def smooth(points: Sequence[Point]) -> list[Point]:
    """Mean over a twentieth of the steps, centred, so that it does not lag behind the loss.

    Towards both ends the window narrows on both sides alike.
    """
    sums = [0.0, *itertools.accumulate(loss for _, loss in points)]
    out: list[Point] = []
    for index, (step, _) in enumerate(points):
        reach = min(len(points) // 40, index, len(points) - 1 - index)
        low, high = index - reach, index + reach + 1
        out.append((step, (sums[high] - sums[low]) / (high - low)))
    return out


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _left(marks: Sequence[float], y: Callable[[float], float]) -> list[Markup]:
    """The numbers of a vertical axis."""
    return [
        Markup('<text class="tick" x="100%" y="{:.1f}" text-anchor="end">{:g}</text>').format(
            y(mark) + 4, mark
        )
        for mark in marks
    ]


def _plot(axis: Sequence[Markup], told: str, parts: Sequence[Markup], height: int) -> Markup:
    """A vertical axis with the drawing beside it; `told` is for those who do not see it."""
    return Markup(
        '<div class="plot"><svg aria-hidden="true" width="44" height="{0}">{1}</svg>'
        '<svg role="img" aria-label="{2}" width="100%" height="{0}">{3}</svg></div>'
    ).format(height, Markup("").join(axis), told, Markup("").join(parts))


def _learning_told(points: Sequence[Scored], forecast: Scored | None, metric: str) -> str:
    told = [f"{p.rows:,} rows {_bounds(p)}" for p in points]
    if forecast is not None:
        told.append(f"forecast for {forecast.rows:,} rows {_bounds(forecast)}")
    return f"{metric} by training rows: " + "; ".join(told)


def _bounds(part: Interval | Scored) -> str:
    value, low, high = (number(float(edge)) for edge in (part.value, part.low, part.high))
    return f"{value} ({low} to {high})"


def _span(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _share(value: float, marks: Sequence[float]) -> float:
    return (value - marks[0]) / (marks[-1] - marks[0])


def _percent(value: float, marks: Sequence[float]) -> float:
    return 100 * _share(value, marks)


def _line(name: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.2f}%" x2="{:.2f}%" y1="{:.1f}" y2="{:.1f}"/>').format(
        name, x1, x2, y1, y2
    )


def _dot(name: str, x: float, y: float) -> Markup:
    return Markup('<circle class="{}" cx="{:.2f}%" cy="{:.1f}" r="4"/>').format(name, x, y)


def _anchor(percent: float) -> str:
    if percent < 12:
        return "start"
    return "end" if percent > 88 else "middle"


def _x_axis(marks: Sequence[float], foot: float, lines: bool = True) -> list[Markup]:
    out: list[Markup] = []
    for mark in marks:
        at = _percent(mark, marks)
        if lines:
            out.append(_line("grid", at, at, 0, foot))
        # Only a label at the very edge is aligned with it: the others stand under their mark.
        anchor = _anchor(at) if at in (0, 100) else "middle"
        out.append(
            Markup('<text class="tick" x="{:.2f}%" y="{}" text-anchor="{}">{}</text>').format(
                at, foot + 16, anchor, f"{mark:,g}".replace("-", "\N{MINUS SIGN}")
            )
        )
    return out


def _path(
    name: str, points: Sequence[Point], columns: Sequence[float], rows: Sequence[float]
) -> Markup:
    stride = math.ceil(len(points) / MOST_POINTS)
    kept = [*points[::stride], points[-1]]
    text = " ".join(
        f"{1000 * _share(step, columns):.1f},{1000 * (1 - _share(loss, rows)):.1f}"
        for step, loss in kept
    )
    return Markup('<polyline class="{}" points="{}" vector-effect="non-scaling-stroke"/>').format(
        name, text
    )


def _best(step: float, at: float) -> list[Markup]:
    label = Markup('<text class="best" x="{:.2f}%" y="4" text-anchor="{}">best: step {}</text>')
    return [_line("best", at, at, 8, PLOT + 8), label.format(at, _anchor(at), f"{step:,g}")]


def _told(train: Sequence[Point], validation: Sequence[Point]) -> str:
    told = [
        f"{name} loss from {number(float(points[0][1]))} at step {points[0][0]:g} "
        f"to {number(float(points[-1][1]))} at step {points[-1][0]:g}"
        for name, points in (("train", smooth(train)), ("validation", validation))
        if points
    ]
    return "Loss curves: " + "; ".join(told)


def _short(line: Interval) -> str:
    fits = len(line.label) <= LONGEST_LABEL
    return line.label if fits else line.label[: LONGEST_LABEL - 1] + "…"

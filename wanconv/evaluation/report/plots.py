"""Plots on a logarithmic axis as plain geometry, which a template draws as SVG: no colours, no markup, no library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

from wanconv.types.figures import figure

WIDTH, HEIGHT = 560, 264
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 16, 34
_MOST_DOTS = 1200  # more than a plot has pixels; beyond it, each dot is the largest of its neighbours


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """`hue` counts from 0 in the order of the legend's colours, of which there are two rows: `kind` is hue or other.
    `lost` are where a value is not finite."""

    label: str
    hue: int
    dashed: bool
    path: str
    lost: tuple[float, ...]
    kind: str = "hue"


@dataclass(frozen=True, slots=True)
class Gate:
    at: float
    label: str
    kind: str


@dataclass(frozen=True, slots=True)
class PlotColumn:
    """A strip of the plot that tells its numbers when pointed at."""

    left: float
    width: float
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    x: float
    y: float
    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    gates: tuple[Gate, ...]
    lines: tuple[Line, ...] = ()
    columns: tuple[PlotColumn, ...] = ()
    cloud: str = ""
    dots: tuple[Dot, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    label: str
    hue: int
    dashed: bool
    values: Sequence[float | None]
    kind: str = "hue"


@dataclass(frozen=True, slots=True)
class _Scale:
    """Decades low .. high on the height of the plot. Zero has no logarithm and lies on the lowest line."""

    low: int
    high: int

    def y(self, value: float) -> float:
        share = (log10(value) - self.low) / (self.high - self.low) if value > 0 else 0.0
        return round(HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM), 1)

    def ticks(self, zero: bool) -> tuple[Tick, ...]:
        step = ceil((self.high - self.low) / 6)
        found = [Tick(self.y(10.0**power), _power(power)) for power in range(self.low, self.high + 1, step)]
        return (Tick(found[0].at, "0"), *found[1:]) if zero else tuple(found)


def _power(exponent: int) -> str:
    plain = {-2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100", 3: "1000"}
    return plain.get(exponent) or f"10{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _scale(values: Sequence[float | None]) -> tuple[_Scale, bool]:
    """Returns the decades that hold all positive values, and whether the lowest line stands for zero."""
    known = [value for value in values if value is not None and isfinite(value)]
    positive = [value for value in known if value > 0] or [1.0]
    zero = any(value == 0 for value in known)
    low, high = floor(log10(min(positive))), ceil(log10(max(positive)) + 0.05)
    return _Scale(low - zero, max(high, low + 2)), zero


def error_plot(title: str, blocks: Sequence[str], series: Sequence[Series], gates: Mapping[str, float]) -> Plot:
    """Returns one line per series over the blocks; `gates` are limits by their label."""
    scale, zero = _scale([*(value for one in series for value in one.values), *gates.values()])
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(blocks))
    centres = [round(LEFT + slot * (i + 0.5), 1) for i in range(len(blocks))]
    every = ceil(len(blocks) / 10)
    return Plot(
        title=title,
        x_label="block",
        x_ticks=tuple(Tick(centres[i], blocks[i]) for i in range(0, len(blocks), every)),
        y_ticks=scale.ticks(zero),
        gates=tuple(Gate(scale.y(value), label, "limit") for label, value in gates.items()),
        lines=tuple(_line(one, centres, scale) for one in series),
        columns=tuple(
            PlotColumn(
                round(centre - slot / 2, 1),
                round(slot, 1),
                "\n".join([f"block {block}", *(f"{one.label}: {_figure(one.values[i])}" for one in series)]),
            )
            for i, (block, centre) in enumerate(zip(blocks, centres, strict=True))
        ),
    )


def _line(series: Series, centres: Sequence[float], scale: _Scale) -> Line:
    path, pen, lost = [], "M", []
    for x, value in zip(centres, series.values, strict=True):
        if value is not None and isfinite(value):
            path.append(f"{pen}{x} {scale.y(value)}")
            pen = "L"
        else:
            pen = "M"
            if value is not None:
                lost.append(x)
    if len(path) == 1:
        path.append("h0")  # a lone point is drawn by its round cap
    return Line(series.label, series.hue, series.dashed, "".join(path), tuple(lost), series.kind)


def headroom_plot(
    title: str, ranges: Sequence[tuple[str, float]], gates: Mapping[str, float], limit: float, near: float
) -> Plot:
    """Returns one dot per operation, in the order given; those above `near` and the eight largest have names."""
    finite = [value for _, value in ranges if isfinite(value)]
    shown = {label: value for label, value in gates.items() if value <= max([*finite, min(gates.values())]) * 100}
    scale, zero = _scale([*finite, *shown.values()])
    width = WIDTH - LEFT - RIGHT
    places = [round(LEFT + width * (i + 0.5) / max(1, len(ranges)), 1) for i in range(len(ranges))]
    order = sorted(range(len(ranges)), key=lambda i: -ranges[i][1] if isfinite(ranges[i][1]) else float("-inf"))
    named = {i for rank, i in enumerate(order[:60]) if rank < 8 or not ranges[i][1] <= near}
    dots = tuple(
        Dot(
            places[i],
            scale.y(value) if isfinite(value) else TOP,
            f"{path}: {_figure(value)}",
            "lost" if not value <= limit else "near" if value > near else "plain",
        )
        for i, (path, value) in enumerate(ranges)
        if i in named
    )
    descending = len(finite) > 2 and finite == sorted(finite, reverse=True)
    bucket = ceil(len(ranges) / _MOST_DOTS)
    cloud = []
    for start in range(0, len(ranges), bucket or 1):
        members = [i for i in range(start, min(start + bucket, len(ranges))) if isfinite(ranges[i][1])]
        if members:
            top = max(members, key=lambda i: ranges[i][1])
            cloud.append(f"M{places[top]} {scale.y(ranges[top][1])}h0")
    away = [label for label, value in gates.items() if label not in shown and value != near]
    return Plot(
        title=title,
        x_label="operations, largest first" if descending else "operations in the order of computing, by block",
        x_ticks=() if descending else _block_ticks([path for path, _ in ranges], places),
        y_ticks=scale.ticks(zero),
        gates=tuple(
            Gate(scale.y(value), label, "limit" if value == limit else "near" if value == near else "other")
            for label, value in shown.items()
        ),
        cloud="".join(cloud),
        dots=dots,
        note=f"Far above this plot: {', '.join(away)}." if away else "",
    )


def _block_ticks(paths: Sequence[str], places: Sequence[float]) -> tuple[Tick, ...]:
    """Ticks where a block's first operation is, at most ten of them."""
    starts: dict[str, float] = {}
    for path, place in zip(paths, places, strict=True):
        words = path.split(" ")[0].replace("/", ".").split(".")
        number = words[words.index("blocks") + 1] if "blocks" in words[:-1] else ""
        if number.isdigit():
            starts.setdefault(number, place)
    every = ceil(len(starts) / 10) or 1
    return tuple(Tick(place, number) for number, place in list(starts.items())[::every])


def _figure(value: float | None) -> str:
    return "not measured" if value is None else figure(value)

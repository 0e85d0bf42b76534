"""Plots of a report as SVG without script, with tooltips, and with colours from the stylesheet of the page.

Each function takes plain numbers and returns one `<svg>` drawn by matplotlib. Colours are CSS variables, so one drawing
serves the light and the dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rec_ray.contracts import EpochResult

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NAMES = ("ink", "muted", "grid", "paper", *(f"c{number}" for number in range(9)))
COLOURS = {name: f"#0{number:x}0{number:x}0f" for number, name in enumerate(_NAMES)}
"""Name of a CSS variable -> placeholder colour while matplotlib draws."""
METHOD_COLOURS = {
    "model": "c0",
    "model_as_recommended": "c7",
    "model_refitted": "c4",
    "live": "c2",
    "popularity": "c1",
    "recent_popularity": "c3",
    "item_knn": "c5",
    "item_transitions": "c6",
}
OTHER = "c8"
"""Colour of everything without its own colour."""
WIDTH = 4.8
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rec_ray",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": COLOURS["grid"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 9.5,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["grid"],
    "ytick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}


def colour_of(method: str) -> str:
    """Return the CSS colour name of a method."""
    return METHOD_COLOURS.get(method, OTHER)


def plot_metric(rows: Sequence[Mapping[str, Any]], label: str) -> str:
    """Draw a point and its interval per method. rows: `name`, `method`, `value`, `low` and `high` (or None)."""
    with _drawing(0.5 + 0.3 * len(rows)) as drawing:
        axes = drawing.axes
        for place, row in enumerate(rows):
            colour = COLOURS[colour_of(row["method"])]
            low, high = row["low"], row["high"]
            text = f"{row['name']}: {row['value']:.4f}"
            if low is not None and high is not None:
                drawing.add_tooltip(axes.hlines(place, low, high, color=colour, linewidth=2.5, alpha=0.55), text)
                text += f" (95 % interval {low:.4f} to {high:.4f})"
            point = axes.plot([row["value"]], [place], "o", color=colour, markersize=7)[0]
            drawing.add_tooltip(point, text)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label)
        axes.grid(axis="x")
        _hide_axis_line(axes, "y")
    return drawing.svg(label)


def plot_recall_curves(curves: Mapping[str, tuple[str, Sequence[tuple[int, float]]]]) -> str:
    """Draw recall over k. curves: method -> its name and points (k, recall)."""
    with _drawing(2.9) as drawing:
        axes = drawing.axes
        ticks: list[int] = []
        for method, (name, points) in reversed(list(curves.items())):
            ticks = [k for k, _ in points]
            colour, width = COLOURS[colour_of(method)], 2.4 if method == "model" else 1.5
            axes.plot([k for k, _ in points], [value for _, value in points], color=colour, linewidth=width)
            for k, value in points:
                drawing.add_tooltip(
                    axes.plot([k], [value], "o", color=colour, markersize=4.5)[0], f"{name}: Recall@{k} {value:.4f}"
                )
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("k, length of the list")
        axes.set_ylabel("Recall@k")
        axes.grid(axis="y")
    return drawing.svg("Recall over the length of the list")


def plot_segments(groups: Sequence[Mapping[str, Any]], label: str) -> str:
    """Draw bars of the methods for each segment.

    groups: `name` and `bars`, each with `method`, `name`, `value`, `low` and `high` (or None).
    """
    most = max(len(group["bars"]) for group in groups)
    with _drawing(0.6 + len(groups) * (0.16 * most + 0.16)) as drawing:
        axes = drawing.axes
        height = 0.8 / most
        for place, group in enumerate(groups):
            for number, bar in enumerate(group["bars"]):
                at = place + (number - (len(group["bars"]) - 1) / 2) * height
                text = f"{group['name']}, {bar['name']}: {bar['value']:.4f}"
                if bar["low"] is not None and bar["high"] is not None:
                    text += f" (95 % interval {bar['low']:.4f} to {bar['high']:.4f})"
                    axes.hlines(at, bar["low"], bar["high"], color=COLOURS["ink"], linewidth=0.9, alpha=0.6, zorder=3)
                colour = COLOURS[colour_of(bar["method"])]
                (drawn,) = axes.barh([at], [bar["value"]], height=height * 0.86, color=colour)
                drawing.add_tooltip(drawn, text)
        axes.set_yticks(range(len(groups)), [group["name"] for group in groups])
        axes.set_ylim(len(groups) - 0.45, -0.55)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label)
        axes.grid(axis="x")
        _hide_axis_line(axes, "y")
    return drawing.svg(f"{label} by segment")


def plot_learning(epochs: Sequence[EpochResult], best: int, metric: str, label: str, colour: str) -> str:
    """Draw a metric over the epochs and mark the epoch whose weights were kept."""
    with _drawing(2.3) as drawing:
        axes = drawing.axes
        numbers = [epoch.epoch for epoch in epochs]
        values = [getattr(epoch, metric) for epoch in epochs]
        axes.plot(numbers, values, color=COLOURS[colour])
        if best in numbers:
            axes.axvline(best, color=COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3)))
        for number, value in zip(numbers, values, strict=True):
            size = 7 if number == best else 4
            point = axes.plot([number], [value], "o", color=COLOURS[colour], markersize=size)[0]
            drawing.add_tooltip(point, f"epoch {number}: {label} {value:.4f}{', kept' if number == best else ''}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(axis="y")
    return drawing.svg(f"{label} of each epoch")


def plot_histograms(groups: Mapping[str, tuple[str, Sequence[float]]], label: str, bins: int = 40) -> str:
    """Draw overlaid histograms. groups: name -> colour and values."""
    values = [value for _, own in groups.values() for value in own]
    low, high = min(values), max(values)
    width = (high - low) or 1.0
    with _drawing(2.6) as drawing:
        axes = drawing.axes
        for name, (colour, own) in groups.items():
            if not own:
                continue
            shares = [1 / len(own)] * len(own)
            edges = [low + width * step / bins for step in range(bins + 1)]
            filled: Any = axes.hist(
                own, bins=edges, weights=shares, histtype="stepfilled", color=COLOURS[colour], alpha=0.35
            )[2]
            axes.hist(own, bins=edges, weights=shares, histtype="step", color=COLOURS[colour], linewidth=1.6)
            middle = sorted(own)[len(own) // 2]
            drawing.add_tooltip(filled[0], f"{name}: {len(own):,} scores, median {middle:.3f}")
        axes.set_xlabel(label)
        axes.set_ylabel("share")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.grid(axis="y")
    return drawing.svg("Distribution of scores")


def plot_popularity(curves: Mapping[str, tuple[str, Sequence[Sequence[float]]]]) -> str:
    """Draw the frequency of items over their rank. curves: name -> colour and points (rank, count)."""
    with _drawing(2.6) as drawing:
        axes = drawing.axes
        for name, (colour, points) in curves.items():
            counted = [(rank, count) for rank, count in points if count > 0]
            if not counted:
                continue
            (line,) = axes.plot([rank for rank, _ in counted], [count for _, count in counted], color=COLOURS[colour])
            drawing.add_tooltip(
                line, f"{name}: {counted[0][1]:,} of the most frequent item, 1 or more of {counted[-1][0]:,} items"
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
        axes.minorticks_off()
        axes.set_xlabel("rank of the item by frequency")
        axes.set_ylabel("count")
        axes.grid()
    return drawing.svg("Distribution of popularity")


def plot_item_map(points: Sequence[Mapping[str, Any]]) -> str:
    """Draw items as points. points: `x`, `y`, `colour` and `text`."""
    with _drawing(4.4) as drawing:
        axes = drawing.axes
        colours = [COLOURS[point["colour"]] for point in points]
        xs, ys = [point["x"] for point in points], [point["y"] for point in points]
        size = 14 if len(points) < 500 else 9
        drawn = axes.scatter(xs, ys, c=colours, s=size, alpha=0.75, linewidths=0)
        drawing.add_tooltip(drawn, *[point["text"] for point in points])
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    return drawing.svg("Map of item vectors")


def plot_seconds(seconds: Mapping[str, float]) -> str:
    """Draw the seconds of each step as bars."""
    with _drawing(0.35 + 0.27 * len(seconds)) as drawing:
        axes = drawing.axes
        for place, (name, took) in enumerate(seconds.items()):
            (bar,) = axes.barh([place], [took], height=0.62, color=COLOURS["c0"])
            drawing.add_tooltip(bar, f"{name}: {took:,.1f} s")
            axes.text(took, place, f" {took:,.1f} s", va="center", color=COLOURS["muted"])
        axes.set_yticks(range(len(seconds)), [name.replace("_", " ") for name in seconds])
        axes.set_ylim(len(seconds) - 0.5, -0.5)
        axes.set_xlim(0, max(*seconds.values(), 0.1) * 1.18)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        _hide_axis_line(axes, "y")
    return drawing.svg("Seconds of each step")


class _Drawing:
    """Figure with one pair of axes and tooltips on its marks."""

    def __init__(self, height: float) -> None:
        self.figure = Figure(figsize=(WIDTH, height), layout="constrained")
        self.axes: Axes = self.figure.add_subplot()
        self._tooltips: dict[str, tuple[str, ...]] = {}
        self._data = b""

    def add_tooltip(self, mark: Any, *words: str) -> None:
        """Add tooltips: one text for a mark, or one for each point of a collection."""
        name = f"mark-{len(self._tooltips)}"
        mark.set_gid(name)
        self._tooltips[name] = words

    def draw(self) -> None:
        data = io.BytesIO()
        self.figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
        self._data = data.getvalue()

    def svg(self, label: str) -> str:
        """Return the drawing as an `<svg>` element."""
        root = ElementTree.fromstring(self._data)
        # A <style> inside the SVG would apply to the complete page, whose stylesheet covers it.
        for parent in list(root.iter()):
            for name in ("metadata", "style"):
                for element in parent.findall(f"{{{_SVG}}}{name}"):
                    parent.remove(element)
        for element in list(root.iter()):
            words = self._tooltips.get(element.get("id", ""))
            if words is None:
                continue
            points = list(element.iter(f"{{{_SVG}}}use")) if len(words) > 1 else [element]
            for point, text in zip(points, words, strict=True):
                title = ElementTree.Element(f"{{{_SVG}}}title")
                title.text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text)
                point.insert(0, title)
        for name in ("width", "height"):
            root.attrib.pop(name, None)
        root.attrib |= {"role": "img", "aria-label": label, "class": "plot"}
        _keep_used_ids(root, re.sub(r"\W+", "-", label.lower()))
        ElementTree.register_namespace("", _SVG)
        ElementTree.register_namespace("xlink", _LINK)
        text = ElementTree.tostring(root, encoding="unicode")
        text = re.sub(r" font-family: [^;\"]*;", "", text)
        for name, stand_in in COLOURS.items():
            text = re.sub(rf"(?<=[: ]){stand_in}\b", f"var(--{name})", text)
        return text


@contextmanager
def _drawing(height: float) -> Iterator[_Drawing]:
    with matplotlib.rc_context(_STYLE):
        drawing = _Drawing(height)
        yield drawing
        drawing.draw()


def _hide_axis_line(axes: Axes, axis: str) -> None:
    """Remove the line and the ticks of an axis, but not its labels."""
    axes.spines["left" if axis == "y" else "bottom"].set_visible(False)
    axes.tick_params(axis="y" if axis == "y" else "x", length=0)


def _keep_used_ids(root: ElementTree.Element, prefix: str) -> None:
    """Remove unused ids and prefix the others, which makes them unique among the drawings of a page."""
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', text))
    link = f"{{{_LINK}}}href"
    for element in root.iter():
        own = element.get("id")
        if own is not None:
            if own in used:
                element.set("id", f"{prefix}-{own}")
            else:
                del element.attrib["id"]
        if element.get(link, "").startswith("#"):
            element.set(link, f"#{prefix}-{element.get(link, '')[1:]}")
        for name, value in element.attrib.items():
            if "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{prefix}-"))

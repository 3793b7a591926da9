"""An SVG canvas: colours, shapes, and placement of labels.

Colours come from four CSS variables: --figure-ink, --figure-faint,
--figure-accent and --figure-paper. The figure's <style> sets them, light or
dark, for a standalone file; a page that sets them itself removes that element.
There are no ids, so a page can hold any number of figures, and equal data give
equal bytes. Lengths are pixels, and y points down.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from os import PathLike
from pathlib import Path
from typing import TypeAlias

COLOURS = {  # on light paper, and on dark
    "ink": ("#1d1d1f", "#e8e8ea"),
    "faint": ("#5d5f66", "#a6a8b0"),
    "accent": ("#0b6bcb", "#4f9bff"),
    "paper": ("#ffffff", "#1e2129"),
}
LIGHT, DARK = ({k: COLOURS[k][i] for k in COLOURS} for i in (0, 1))
INK, FAINT, ACCENT, PAPER = (f"var(--figure-{k},{LIGHT[k]})" for k in LIGHT)
# Opacity of the strongest cell: ink on it has a contrast of 4.5.
STRONGEST = 0.55
ROW = 30.0  # height of a row
GAP = 8.0  # between a label and its shape

FADED, RULE = f"fill:{FAINT}", f"stroke:{FAINT}"
BAR = f"fill:{ACCENT};fill-opacity:{STRONGEST}"
CELL = f"fill:{ACCENT};{RULE};stroke-opacity:0.3;fill-opacity:"
HALO = f"stroke:{PAPER};stroke-width:4px;stroke-linejoin:round;"
HALO += "paint-order:stroke"

Number: TypeAlias = float | int
Point: TypeAlias = tuple[Number, Number]


@dataclass(frozen=True)
class Figure:
    """A picture, displayed by notebooks, and its text alternative.

    Args:
        svg: an SVG document.
        alt: its text alternative.

    Example:
        >>> from attention.pictures.plots import Figure
        >>> Figure("<svg xmlns='http://www.w3.org/2000/svg'/>", alt="Nothing.")
        Figure(alt='Nothing.')
    """

    svg: str = field(repr=False)
    alt: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | PathLike[str]) -> None:
        """Write the picture to a file."""
        Path(path).write_text(self.svg, encoding="utf-8")


class Canvas:
    """A list of shapes that becomes a `Figure`."""

    def __init__(self) -> None:
        """Start empty."""
        self.shapes = ET.Element("g")

    def add(
        self, tag: str, style: str, **attributes: Number | str
    ) -> ET.Element:
        """Add an element; numbers among its attributes are lengths."""
        strings = {k: _px(v) for k, v in attributes.items()}
        strings |= {"style": style} if style else {}
        return ET.SubElement(self.shapes, tag, strings)

    def text(
        self, at: Point, words: str, anchor: str = "middle", style: str = ""
    ) -> None:
        """Write text with its middle, start or end at a point."""
        anchors = {"dy": "0.35em", "text-anchor": anchor}
        self.add("text", style, x=at[0], y=at[1], **anchors).text = words

    def line(self, start: Point, end: Point, style: str = RULE) -> None:
        """Draw a straight line."""
        self.add("path", style, d=_path(start, end))

    def bar(self, at: Point, width: Number) -> None:
        """Draw a bar that starts in the middle of a row's left edge."""
        size = {"width": width, "height": ROW - 12, "rx": 3}
        self.add("rect", BAR, x=at[0], y=at[1] - ROW / 2 + 6, **size)

    def cells(
        self,
        at: Point,
        width: Number,
        row: Sequence[float],
        extent: tuple[float, float],
        digits: int = 2,
    ) -> None:
        """Draw a row of numbers, coloured by value, hatched if not finite."""
        low, high = min(0.0, extent[0]), extent[1]
        across, down = width - 2, ROW - 2
        size = {"width": across, "height": down, "rx": 3}
        x, y = at[0] + 1, at[1] - down / 2
        for value in row:
            finite = math.isfinite(value)
            share = (value - low) / ((high - low) or 1) if finite else 0
            colour = f"{CELL}{STRONGEST * share:.3f}"
            self.add("rect", colour, x=x, y=y, **size)
            if not finite:
                lines = ""
                for n in range(6, int(across + down), 6):  # where x + y is n
                    a, b = max(0, n - down), min(across, n)
                    lines += _path((x + a, y + n - a), (x + b, y + n - b))
                self.add("path", f"{RULE};stroke-opacity:0.4", d=lines)
            words, halo = number(value, digits), "" if finite else HALO
            self.text((x + across / 2, at[1]), words, style=halo)
            x += width

    def arrow(self, start: Point, end: Point) -> None:
        """Draw an arrow, or a dot if it is shorter than a pixel."""
        length = math.dist(start, end)
        if length < 1:
            self.add("circle", f"fill:{ACCENT}", cx=end[0], cy=end[1], r=3)
            return
        x, y = (end[0] - start[0]) / length, (end[1] - start[1]) / length
        a, b = end[0] - min(11, length) * x, end[1] - min(11, length) * y
        head = _path(end, (a - 4 * y, b + 4 * x), (a + 4 * y, b - 4 * x))
        self.line(start, (a, b), f"stroke:{ACCENT};stroke-width:2")
        self.add("path", f"fill:{ACCENT}", d=head + "Z")

    def names(
        self,
        labels: Sequence[str],
        tips: Sequence[Point],
        origin: Point,
        corner: Point,
    ) -> None:
        """Write labels near their arrows' tips, clear of each other."""
        (x0, y0), placed = origin, list[tuple[float, float, float]]()
        dots = [
            (x0 + n / 50 * (x - x0), y0 + n / 50 * (y - y0))
            for (x, y), n in product(tips, range(51))
        ]
        sixteenths = sorted(range(-7, 9), key=abs)  # of a circle
        for label, tip in zip(labels, tips, strict=True):
            half, candidates = width_of(label) / 2 + 3, []
            outward = math.atan2(tip[1] - y0, tip[0] - x0)
            for distance, n in product((6, 14, 24, 36), sixteenths):
                angle = outward + n * math.pi / 8
                x = tip[0] + math.cos(angle) * (distance + half)
                y = tip[1] + math.sin(angle) * (distance + 9)
                inside = half < x < corner[0] + 40 - half
                cost = 100 * (not (inside and -8 < y < corner[1] - 8))
                cost += sum(
                    abs(a - x) < half and abs(b - y) < 10 for a, b in dots
                )
                cost += 100 * sum(
                    abs(a - x) < half + other and abs(b - y) < 18
                    for a, b, other in placed
                )
                candidates.append((cost, distance + abs(n), (x, y, half)))
            *_, (x, y, _) = min(candidates)
            placed.append((x, y, half))
            if math.dist(tip, (x, y)) > half + 21:
                self.line(tip, (x, y))
            self.text((x, y), label, style=HALO)

    def figure(self, start: Point, end: Point, title: str, alt: str) -> Figure:
        """The figure between two corners, top left and bottom right."""
        left, top = _px(start[0] - 4), _px(start[1] - 4)
        width, height = _px(end[0] - start[0] + 8), _px(end[1] - start[1] + 8)
        attributes = {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "attention-figure",
            "role": "img",
            "viewBox": f"{left} {top} {width} {height}",
            "width": width,
            "height": height,
            "font-size": "14",
            "style": f"max-width:100%;height:auto;fill:{INK};"
            "font-variant-numeric:tabular-nums",
        }
        light, dark = (
            ";".join(f"--figure-{k}:{scheme[k]}" for k in scheme)
            for scheme in (LIGHT, DARK)
        )
        svg = ET.Element("svg", attributes)
        ET.SubElement(svg, "title").text = title
        ET.SubElement(svg, "desc").text = alt
        ET.SubElement(svg, "style").text = (
            f".attention-figure{{{light};background:var(--figure-paper);"
            "font-family:system-ui,sans-serif}@media "
            f"(prefers-color-scheme:dark){{.attention-figure{{{dark}}}}}"
        )
        svg.append(self.shapes)
        return Figure(ET.tostring(svg, encoding="unicode"), alt)


def width_of(words: str) -> float:
    """Approximate width of text in DejaVu Sans, the widest common font."""
    thin, wide = "fijlrt .,:;'|()[]", "mwMW\N{MINUS SIGN}"
    return sum(4.5 if c in thin else 11.5 if c in wide else 8.5 for c in words)


def number(x: Number, digits: int = 2) -> str:
    """A number with fixed decimals and a true minus sign."""
    return f"{x:z.{digits}f}".replace("-", "\N{MINUS SIGN}")


def vector(numbers: Iterable[float]) -> str:
    """Numbers in parentheses."""
    return f"({', '.join(map(number, numbers))})"


def _px(x: Number | str) -> str:
    """A length rounded to a tenth of a pixel; strings are unchanged."""
    return x if isinstance(x, str) else f"{round(x, 1) + 0.0:g}"


def _path(*points: Point) -> str:
    """The path of straight lines through points."""
    return "M" + "L".join(f"{_px(x)} {_px(y)}" for x, y in points)

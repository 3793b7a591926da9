"""Figures of attention as SVG, drawn from the computed values.

Six tokens take about 400 pixels, so that text stays readable on a phone.
"""

import math
from collections.abc import Sequence
from itertools import chain, combinations
from operator import mul
from typing import Any

import torch
from jaxtyping import Bool, Real
from torch import Tensor

from attention.pictures.canvas import (
    FADED,
    GAP,
    ROW,
    RULE,
    Canvas,
    Figure,
    Point,
    number,
    vector,
    width_of,
)
from attention.validation import argument_error, type_name

__all__ = ["Figure", "heatmap", "vectors", "weighted_sum"]


def heatmap(
    matrix: Real[Tensor, "n m"] | Bool[Tensor, "n m"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "Heatmap",
    row_title: str = "query",
    column_title: str = "key",
    digits: int = 2,
) -> Figure:
    r"""Heatmap of a matrix: each entry a number in a cell, coloured by value.

    The colour is linear from the smallest entry, or from 0 if none is
    negative, to the largest. Infinite entries and NaN are hatched.

    Args:
        matrix: (n, m), such as weights or scores.
        rows: n labels.
        columns: m labels.
        title: for the text alternative; it is not drawn.
        row_title: meaning of a row.
        column_title: meaning of a column.
        digits: decimals of the numbers.

    Returns:
        The figure. Its alt gives size, range and the largest of each row.

    Raises:
        TypeError: matrix is not a tensor of real numbers, or a label is not a
            string.
        ValueError: matrix is not (n, m) or empty, or labels do not fit it.

    Example:
        >>> import torch
        >>> from attention import heatmap
        >>> figure = heatmap(torch.eye(2), ["a", "b"], ["c", "d"], digits=0)
        >>> print(figure.alt.replace(". ", ".\n"))
        Heatmap: 2 rows (query) by 2 columns (key), from 0 to 1.
        Largest in each row: a: c 1; b: d 1.
    """
    table = _check_numbers("matrix", matrix, 2)
    _check_labels("rows", rows, matrix.shape, 0)
    _check_labels("columns", columns, matrix.shape, 1)
    entries = list(chain(*table))
    finite = [x for x in entries if math.isfinite(x)]
    extent = min(finite, default=0.0), max(finite, default=0.0)
    least, most, *shown = (number(x, digits) for x in (*extent, *entries))
    width = max(*map(width_of, columns), max(map(width_of, shown)) + GAP) + GAP
    left, top = max(map(width_of, [*rows, row_title])) + GAP, 44.0
    right, bottom = left + width * len(columns), top + ROW * len(rows)
    canvas = Canvas()
    canvas.text(((left + right) / 2, 8), column_title, style=FADED)
    canvas.text((left - GAP, top - 14), row_title, "end", FADED)
    for j, column in enumerate(columns):
        canvas.text((left + width * (j + 0.5), top - 14), column)
    best = []
    for i, (label, row) in enumerate(zip(rows, table, strict=True)):
        y = top + ROW * (i + 0.5)
        canvas.text((left - GAP, y), label, "end")
        canvas.cells((left, y), width, row, extent, digits)
        j, x = max(enumerate(row), key=lambda e: (math.isfinite(e[1]), e[1]))
        found = f"{columns[j]} {number(x, digits)}"
        best.append(f"{label}: {found if math.isfinite(x) else 'none'}")
    hatched = len(entries) - len(finite)
    alt = (
        f"{title}: {len(rows)} rows ({row_title}) by {len(columns)} columns "
        f"({column_title}), from {least} to {most}"
        f"{f', {hatched} not finite' if hatched else ''}. "
        f"Largest in each row: {'; '.join(best)}."
    )
    return canvas.figure((0, 0), (right, bottom), title, alt)


def vectors(
    matrix: Real[Tensor, "n d"],
    labels: Sequence[str],
    *,
    axes: tuple[int, int] = (0, 1),
    title: str = "Vectors",
) -> Figure:
    r"""Vectors as arrows from the origin, in two coordinates.

    Both axes have the same unit, so that angles and lengths are true.

    Args:
        matrix: (n, d), one vector a row, d at least 2.
        labels: n labels.
        axes: the horizontal and the vertical coordinate, counted from 0.
        title: as in `heatmap`.

    Returns:
        The figure. Its alt gives the coordinates and the two closest tips.

    Raises:
        TypeError: as `heatmap`.
        ValueError: matrix is not (n, d), is empty or not finite, labels do not
            fit it, or axes are not two of its columns.

    Example:
        >>> import torch
        >>> from attention import vectors
        >>> figure = vectors(torch.eye(2), ["a", "b"])
        >>> print(figure.alt.replace(". ", ".\n"))
        Vectors: arrows from the origin, coordinates 0 and 1.
        a (1.00, 0.00); b (0.00, 1.00).
        Closest tips: a and b.
    """
    table = _check_numbers("matrix", matrix, 2, finite=True)
    _check_labels("labels", labels, matrix.shape, 0)
    if len(set(axes)) != 2 or not set(axes) <= set(range(matrix.shape[1])):
        rule = "two different columns, counted from 0, of matrix"
        raise ValueError(f"axes={axes} must be {rule} {tuple(matrix.shape)}")
    points = [(row[axes[0]], row[axes[1]]) for row in table]
    reach = [(min(0.0, *x), max(0.0, *x)) for x in zip(*points, strict=True)]
    longest = max(high - low for low, high in reach) or 1.0
    aim = longest / 5  # the next of 1, 2 and 5 times a power of ten
    ten = 10.0 ** math.floor(math.log10(aim))
    step = next(n * ten for n in (1, 2, 5, 10) if n * ten >= 0.999 * aim)
    # Room for labels beyond the tips, on sides of the origin that have arrows.
    room = 0.1 * longest
    reach = [(low - room * (low < 0), high + room) for low, high in reach]
    unit = 320 / max(high - low for low, high in reach)
    right, bottom = (unit * (high - low) for low, high in reach)

    def to_pixels(x: float | int, y: float | int) -> Point:
        return unit * (x - reach[0][0]), unit * (reach[1][1] - y)

    canvas = Canvas()
    for axis, (low, high) in enumerate(reach):
        for n in range(math.ceil(low / step), math.floor(high / step) + 1):
            x, y = to_pixels(n * step, n * step)
            words = f"{n * step:.10g}".replace("-", "\N{MINUS SIGN}")
            grid = f"{RULE};stroke-opacity:{0.3 if n else 1}"
            if axis == 0:
                canvas.line((x, 0), (x, bottom), grid)
                canvas.text((x, bottom + 14), words, style=FADED)
            else:
                canvas.line((0, y), (right, y), grid)
                canvas.text((-GAP, y), words, "end", FADED)
    canvas.text((right, bottom + 34), f"coordinate {axes[0]} →", "end", FADED)
    canvas.text((-30, -14), f"↑ coordinate {axes[1]}", "start", FADED)
    origin, tips = to_pixels(0, 0), [to_pixels(*point) for point in points]
    for tip in tips:
        canvas.arrow(origin, tip)
    canvas.names(labels, tips, origin, (right, bottom))
    named = zip(labels, map(vector, points), strict=True)
    alt = (
        f"{title}: arrows from the origin, coordinates {axes[0]} and "
        f"{axes[1]}. {'; '.join(map(' '.join, named))}."
    )
    if len(points) > 1:
        pairs = combinations(zip(points, labels, strict=True), 2)
        (_, a), (_, b) = min(pairs, key=lambda p: math.dist(p[0][0], p[1][0]))
        alt += f" Closest tips: {a} and {b}."
    return canvas.figure((-32, -24), (right + 40, bottom + 42), title, alt)


def weighted_sum(
    weights: Real[Tensor, " n"],
    values: Real[Tensor, "n d"],
    labels: Sequence[str],
    *,
    result_label: str = "context vector",
    title: str = "Weighted sum",
) -> Figure:
    r"""Weighted sum of vectors: each value, its weight, and the sum.

        result = sum_i weights[i] * values[i]

    Args:
        weights: (n,), at least 0, such as a row of attention weights.
        values: (n, d), one value vector a row.
        labels: n labels of the rows.
        result_label: label of the sum.
        title: as in `heatmap`.

    Returns:
        The figure. Its alt is the sum, written out.

    Raises:
        TypeError: as `heatmap`, for weights and values.
        ValueError: weights are not (n,), finite and at least 0, values not
            (n, d) and finite, either is empty, or labels do not fit them.

    Example:
        >>> import torch
        >>> from attention import weighted_sum
        >>> shares = torch.tensor([0.25, 0.75])
        >>> figure = weighted_sum(shares, torch.eye(2), ["a", "b"])
        >>> print(figure.alt.replace(" = ", "\n= "))
        Weighted sum: context vector (0.25, 0.75)
        = 0.25 a (1.00, 0.00) + 0.75 b (0.00, 1.00).
    """
    shares = _check_numbers("weights", weights, 1, finite=True)
    table = _check_numbers("values", values, 2, finite=True)
    _check_labels("labels", labels, values.shape, 0)
    if len(shares) != len(table):
        rule = f"hold one for each row of values {tuple(values.shape)}"
        raise argument_error("weights", rule, len(shares))
    if min(shares) < 0:
        raise argument_error("weights", "be at least 0", f"{min(shares):g}")
    result = [math.fsum(map(mul, shares, x)) for x in zip(*table, strict=True)]
    entries = [*chain(*table), *result]
    extent = min(entries), max(entries)
    width = max(width_of(number(x)) for x in entries) + 2 * GAP
    # From left to right: labels, bars of at most 80, weights, times, values.
    bars = max(*map(width_of, labels), width_of(result_label) - 118) + GAP
    times = bars + 80 + 40 + 2 * GAP
    left, top = times + 2 * GAP, 24.0
    right, y = left + width * len(result), top + ROW / 2  # middle of a row
    canvas = Canvas()
    canvas.text((bars, 8), "weight", "start", FADED)
    canvas.text(((left + right) / 2, 8), "value", style=FADED)
    terms = []
    for label, share, row in zip(labels, shares, table, strict=True):
        canvas.text((bars - GAP, y), label, "end")
        canvas.bar((bars, y), 80 * share / (max(shares) or 1))
        canvas.text((times - 2 * GAP, y), number(share), "end")
        canvas.text((times, y), "×", style=FADED)
        canvas.cells((left, y), width, row, extent)
        terms.append(f"{number(share)} {label} {vector(row)}")
        y += ROW
    y += GAP
    canvas.line((0, y - 4 - ROW / 2), (right, y - 4 - ROW / 2))
    canvas.text((times - 2 * GAP, y), result_label, "end", "font-weight:600")
    canvas.text((times, y), "=", style=FADED)
    canvas.cells((left, y), width, result, extent)
    alt = f"{title}: {result_label} {vector(result)} = {' + '.join(terms)}."
    return canvas.figure((0, 0), (right, y + ROW / 2), title, alt)


def _check_numbers(
    name: str, x: object, dims: int, *, finite: bool = False
) -> Any:
    """Raise unless x can be drawn; return its entries as nested lists."""
    if not isinstance(x, Tensor) or x.is_complex():
        raise argument_error(
            name, "be a tensor of real numbers", type_name(x), TypeError
        )
    if x.dim() != dims or x.numel() == 0:
        rule = f"have {dims} dimension{'s' * (dims > 1)}, none of size 0"
        raise argument_error(name, rule, f"shape {tuple(x.shape)}")
    if finite and not x.isfinite().all():
        raise argument_error(name, "be finite", x[~x.isfinite()][0].item())
    return x.double().tolist()


def _check_labels(
    name: str, labels: Sequence[str], shape: torch.Size, dim: int
) -> None:
    """Raise unless there is one string for each entry of a dimension."""
    if isinstance(labels, str) or not all(isinstance(x, str) for x in labels):
        raise argument_error(
            name, "be a list of strings", repr(labels), TypeError
        )
    if len(labels) != shape[dim]:
        rule = f"hold {shape[dim]} labels for shape {tuple(shape)}"
        raise argument_error(name, rule, len(labels))

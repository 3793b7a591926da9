"""Pictures: what they show and say, that they can be read, errors."""

import dataclasses
import itertools
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from attention import attention_weights, heatmap, vectors, weighted_sum
from attention.pictures.canvas import DARK, LIGHT, STRONGEST
from attention.pictures.plots import Figure

SVG = "{http://www.w3.org/2000/svg}"
MINUS = "\N{MINUS SIGN}"
TOKENS = ["Your", "journey", "starts", "with", "one", "step"]
INPUTS = torch.tensor(
    [
        [0.43, 0.15, 0.89],
        [0.55, 0.87, 0.66],
        [0.57, 0.85, 0.64],
        [0.22, 0.58, 0.33],
        [0.77, 0.25, 0.10],
        [0.05, 0.80, 0.55],
    ]
)
WEIGHTS = attention_weights(INPUTS, INPUTS, scale=1.0)


def texts(figure):
    """The text elements of a picture, in order: words, x and y."""
    return [
        (t.text, float(t.get("x")), float(t.get("y")))
        for t in ET.fromstring(figure.svg).iter(f"{SVG}text")
    ]


def words(figure):
    return [text for text, _, _ in texts(figure)]


def opacities(figure):
    return [float(x) for x in re.findall(r"fill-opacity:([\d.]+)", figure.svg)]


def every_kind():
    return [
        heatmap(WEIGHTS, TOKENS, TOKENS),
        vectors(INPUTS, TOKENS),
        weighted_sum(WEIGHTS[1], INPUTS, TOKENS),
    ]


# --- by hand ------------------------------------------------------------------


def test_a_heatmap_prints_each_number_in_its_row_and_column():
    figure = heatmap(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), list("ab"), list("xyz"))
    places = {word: (x, y) for word, x, y in texts(figure)}
    for i, row in enumerate("ab"):
        for j, column in enumerate("xyz"):
            x, y = places[f"{1 + 3 * i + j}.00"]
            assert (x, y) == (places[column][0], places[row][1])


def test_a_heatmap_colours_from_zero_to_the_largest():
    figure = heatmap(torch.tensor([[1.0, 2.0], [4.0, 5.0]]), list("ab"), list("xy"))
    shares = [1 / 5, 2 / 5, 4 / 5, 1]
    assert opacities(figure) == pytest.approx([STRONGEST * share for share in shares])


def test_with_negative_numbers_a_heatmap_colours_from_the_smallest():
    figure = heatmap(torch.tensor([[-1.0, 0.0, 1.0]]), list("a"), list("xyz"))
    assert opacities(figure) == [0, STRONGEST / 2, STRONGEST]
    assert f"{MINUS}1.00" in words(figure)


def test_the_alt_of_a_heatmap_names_size_range_and_each_rows_largest():
    assert heatmap(WEIGHTS, TOKENS, TOKENS, title="Attention weights").alt == (
        "Attention weights: 6 rows (query) by 6 columns (key), from 0.10 to 0.24. "
        "Largest in each row: Your: Your 0.21; journey: journey 0.24; starts: journey "
        "0.24; with: journey 0.21; one: starts 0.20; step: journey 0.22."
    )


def test_what_is_not_finite_is_hatched_and_named():
    scores = torch.tensor([[0.5, -math.inf], [math.nan, math.inf], [2.0, 1.0]])
    figure = heatmap(scores, list("abc"), list("xy"))
    assert [w for w in words(figure) if w in (f"{MINUS}inf", "nan", "inf")] == [
        f"{MINUS}inf",
        "nan",
        "inf",
    ]
    assert len(list(ET.fromstring(figure.svg).iter(f"{SVG}path"))) == 3  # the hatches
    assert opacities(figure)[1:4] == [0, 0, 0]
    assert "from 0.50 to 2.00, 3 not finite" in figure.alt
    assert figure.alt.endswith("a: x 0.50; b: none; c: x 2.00.")


def test_masks_and_whole_numbers_are_drawn_too():
    mask = torch.ones(2, 2, dtype=torch.bool).tril()
    figure = heatmap(mask, list("ab"), list("xy"), digits=0)
    assert opacities(figure) == [STRONGEST, 0, STRONGEST, STRONGEST]
    assert heatmap(mask.long(), list("ab"), list("xy"), digits=0) == figure


def test_a_weighted_sum_is_computed_and_written_out():
    values = torch.tensor([[4.0, 0.0], [0.0, 8.0]])
    figure = weighted_sum(torch.tensor([0.25, 0.75]), values, ["a", "b"], result_label="mean")
    assert figure.alt == (
        "Weighted sum: mean (1.00, 6.00) = 0.25 a (4.00, 0.00) + 0.75 b (0.00, 8.00)."
    )
    last = words(figure)[words(figure).index("mean") :]
    assert last == ["mean", "=", "1.00", "6.00"]


def test_the_context_vector_of_journey_is_the_notebooks():
    figure = weighted_sum(WEIGHTS[1], INPUTS, TOKENS)
    assert words(figure)[-3:] == ["0.44", "0.65", "0.57"]


def bars(*weights):
    figure = weighted_sum(torch.tensor(weights), torch.zeros(2, 1), ["a", "b"])
    return [
        float(rect.get("width"))
        for rect in ET.fromstring(figure.svg).iter(f"{SVG}rect")
        if "stroke" not in rect.get("style")
    ]


def test_the_bars_of_a_weighted_sum_are_as_long_as_the_weights_and_fill_their_room():
    assert bars(0.1, 0.4) == bars(0.2, 0.8) == [20, 80]
    assert bars(0.0, 0.0) == [0, 0]


@pytest.mark.parametrize("axes", [(0, 1), (2, 0)])
def test_arrows_end_where_the_vectors_do(axes):
    points = torch.tensor([[0.0, 1.0, 3.0], [2.0, -1.0, 1.0], [1.0, 1.0, 0.0]])
    figure = vectors(points, ["a", "b", "c"], axes=axes)
    heads = [
        [float(x) for x in re.findall(r"-?[\d.]+", path.get("d"))[:2]]
        for path in ET.fromstring(figure.svg).iter(f"{SVG}path")
        if path.get("d").endswith("Z")
    ]
    shafts = [
        [float(x) for x in re.findall(r"-?[\d.]+", path.get("d"))[:2]]
        for path in ET.fromstring(figure.svg).iter(f"{SVG}path")
        if "stroke-width:2" in path.get("style")
    ]
    assert shafts[0] == shafts[1] == shafts[2]  # the origin
    drawn = torch.tensor(heads) - torch.tensor(shafts[0])
    expected = points[:, list(axes)] * torch.tensor([1.0, -1.0])  # y points down
    unit = drawn.norm() / expected.norm()
    # Coordinates are rounded to a tenth of a pixel.
    torch.testing.assert_close(drawn, unit * expected, atol=0.2, rtol=0)


def test_the_alt_of_vectors_gives_coordinates_and_the_closest_tips():
    assert vectors(INPUTS, TOKENS, axes=(2, 0), title="Tokens").alt == (
        "Tokens: arrows from the origin, coordinates 2 and 0. Your (0.89, 0.43); "
        "journey (0.66, 0.55); starts (0.64, 0.57); with (0.33, 0.22); "
        "one (0.10, 0.77); step (0.55, 0.05). Closest tips: journey and starts."
    )
    assert vectors(torch.zeros(1, 2), ["zero"]).alt.endswith("zero (0.00, 0.00).")


# --- it can be read -------------------------------------------------------------


def luminance(colour):
    """Relative luminance of an RGB colour from 0 to 1, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def over(paper, colour, opacity):
    return [opacity * c + (1 - opacity) * p for c, p in zip(colour, paper, strict=True)]


def assert_text_is_legible(scheme):
    ink, faint, accent, paper = (
        [int(scheme[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        for name in ("ink", "faint", "accent", "paper")
    )
    for step in range(11):
        assert contrast(ink, over(paper, accent, STRONGEST * step / 10)) >= 4.5
    assert contrast(ink, over(paper, faint, 0.4)) >= 4.5  # hatching
    assert contrast(faint, paper) >= 4.5
    assert contrast(accent, paper) >= 3  # arrows


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_keeps_its_contrast_on_every_cell(scheme):
    assert_text_is_legible(scheme)


def test_text_keeps_its_contrast_in_the_colours_of_the_site():
    css = (Path(__file__).parents[1] / "docs/assets/book.css").read_text("utf-8")
    found = re.findall(r"--figure-(\w+):\s*(#[0-9a-f]+)", css)
    assert [name for name, _ in found] == [*LIGHT, *DARK, *LIGHT], "paper is light"
    for scheme in (found[:4], found[4:8], found[8:]):
        full = {
            name: f"#{''.join(2 * c for c in colour[1:])}" if len(colour) == 4 else colour
            for name, colour in scheme
        }
        assert_text_is_legible(full)


def test_no_cell_is_stronger_than_the_contrast_allows():
    for figure in every_kind():
        assert all(0 <= x <= STRONGEST for x in opacities(figure))


# In pixels, at 14 to the em: Chromium's getComputedTextLength for DejaVu Sans.
WIDTHS = dict(zip(TOKENS, (29.9, 52.6, 39.9, 29.7, 26.1, 30.3), strict=True))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3), 2)))
def test_the_labels_of_the_six_tokens_do_not_overlap(axes):
    placed = [t for t in texts(vectors(INPUTS, TOKENS, axes=axes)) if t[0] in TOKENS]
    assert len(placed) == 6
    for (a, ax, ay), (b, bx, by) in itertools.combinations(placed, 2):
        assert abs(ax - bx) > (WIDTHS[a] + WIDTHS[b]) / 2 or abs(ay - by) > 16


def test_labels_find_room_in_a_crowd():
    bundle = torch.tensor([[1.0, 1 + i / 100] for i in range(7)])
    placed = texts(vectors(bundle, [f"name{i}" for i in range(7)]))
    placed = [t for t in placed if t[0].startswith("name")]
    for (_, ax, ay), (_, bx, by) in itertools.combinations(placed, 2):
        assert abs(ax - bx) > 48.6 or abs(ay - by) > 16


def test_everything_lies_inside_the_picture():
    for figure in every_kind():
        left, top, width, height = map(float, ET.fromstring(figure.svg).get("viewBox").split())
        assert width <= 480  # at 328 pixels the text keeps two thirds of its size
        for _, x, y in texts(figure):
            assert left < x < left + width
            assert top < y < top + height


# --- what holds for each ----------------------------------------------------------


@pytest.mark.parametrize("index", range(3))
def test_each_picture_is_a_labelled_image_that_scales(index):
    figure = every_kind()[index]
    svg = ET.fromstring(figure.svg)
    assert svg.get("role") == "img"
    assert svg.get("class") == "attention-figure"
    assert svg.get("viewBox").split()[2:] == [svg.get("width"), svg.get("height")]
    assert svg.get("style").startswith("max-width:100%;height:auto;")
    assert [child.tag for child in svg] == [SVG + tag for tag in ("title", "desc", "style", "g")]
    assert svg.find(f"{SVG}title").text
    assert svg.find(f"{SVG}desc").text == figure.alt


@pytest.mark.parametrize("index", range(3))
def test_pictures_share_a_page_without_ids_and_with_variables_for_colours(index):
    svg = every_kind()[index].svg
    assert not re.search(r"\bid=|url\(|href", svg)
    without_style = re.sub(r"<style>.*?</style>", "", svg)
    colours = re.findall(r"#[0-9a-f]{3,8}", without_style)
    fallbacks = re.findall(r"var\(--figure-(\w+),(#[0-9a-f]{6})\)", without_style)
    assert len(colours) == len(fallbacks)
    assert all(LIGHT[name] == colour for name, colour in fallbacks)


def test_a_file_on_its_own_has_both_schemes(tmp_path):
    figure = heatmap(WEIGHTS, TOKENS, TOKENS)
    figure.save(tmp_path / "weights.svg")
    saved = (tmp_path / "weights.svg").read_text(encoding="utf-8")
    assert saved == figure.svg == figure._repr_svg_()
    style = ET.fromstring(saved).find(f"{SVG}style").text
    light, dark = style.split("@media (prefers-color-scheme:dark)")
    for name in LIGHT:
        assert f"--figure-{name}:{LIGHT[name]}" in light
        assert f"--figure-{name}:{DARK[name]}" in dark
    assert all(rule.startswith(".attention-figure{") for rule in (light, dark.removeprefix("{")))


def test_the_same_data_give_the_same_bytes_and_other_data_others():
    assert every_kind() == every_kind()
    assert heatmap(WEIGHTS, TOKENS, TOKENS) != heatmap(WEIGHTS.T, TOKENS, TOKENS)


def test_a_tensor_that_learns_can_be_drawn():
    weights = WEIGHTS.clone().requires_grad_()
    assert heatmap(weights, TOKENS, TOKENS) == heatmap(WEIGHTS, TOKENS, TOKENS)


def test_a_figure_cannot_be_changed_and_shows_its_alt():
    figure = Figure("<svg/>", alt="Nothing.")
    with pytest.raises(dataclasses.FrozenInstanceError):
        figure.alt = "Something."
    assert repr(figure) == "Figure(alt='Nothing.')"


def test_labels_are_escaped():
    figure = heatmap(torch.eye(2), ["<s>", "&"], ["</s>", '"'], title="a < b")
    assert {"<s>", "&", "</s>", '"'} <= set(words(figure))


def test_no_negative_zero_is_printed():
    figure = heatmap(torch.tensor([[-0.001, 1.0]]), list("a"), list("xy"))
    assert "0.00" in words(figure)
    assert "from 0.00 to 1.00" in figure.alt


# --- errors ---------------------------------------------------------------------

AB = ["a", "b"]


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: heatmap([[1.0]], AB, AB), TypeError, "^matrix must be .* got list$"),
        (
            lambda: heatmap(torch.eye(2).to(torch.complex64), AB, AB),
            TypeError,
            "^matrix must be a tensor of real numbers, got torch.complex64$",
        ),
        (
            lambda: heatmap(torch.zeros(2), AB, AB),
            ValueError,
            r"^matrix must have 2 dimensions, none of size 0, got shape \(2,\)$",
        ),
        (
            lambda: heatmap(torch.zeros(2, 0), AB, []),
            ValueError,
            r"^matrix must have 2 .* got shape \(2, 0\)$",
        ),
        (
            lambda: heatmap(torch.zeros(2, 3), AB, AB),
            ValueError,
            r"^columns must hold 3 labels for shape \(2, 3\), got 2$",
        ),
        (
            lambda: heatmap(torch.zeros(3, 2), AB, AB),
            ValueError,
            r"^rows must hold 3 labels for shape \(3, 2\), got 2$",
        ),
        (
            lambda: heatmap(torch.eye(2), [1, 2], AB),
            TypeError,
            r"^rows must be a list of strings, got \[1, 2\]$",
        ),
        (
            lambda: vectors(torch.tensor([[1.0, math.nan]]), ["a"]),
            ValueError,
            "^matrix must be finite, got nan$",
        ),
        (
            lambda: vectors(torch.eye(2), ["a"]),
            ValueError,
            "^labels must hold 2.*got 1$",
        ),
        (
            lambda: vectors(torch.eye(2), AB, axes=(0, 2)),
            ValueError,
            r"^axes=\(0, 2\) must be two different columns.* matrix \(2, 2\)$",
        ),
        (
            lambda: vectors(torch.eye(2), AB, axes=(1, 1)),
            ValueError,
            r"^axes=\(1, 1\) must be two different columns",
        ),
        (
            lambda: weighted_sum(torch.eye(2), torch.eye(2), AB),
            ValueError,
            r"^weights must have 1 dimension, none .* got shape \(2, 2\)$",
        ),
        (
            lambda: weighted_sum(torch.ones(3), torch.eye(2), AB),
            ValueError,
            r"^weights must hold one for each row of values \(2, 2\), got 3$",
        ),
        (
            lambda: weighted_sum(torch.tensor([0.5, -0.5]), torch.eye(2), AB),
            ValueError,
            "^weights must be at least 0, got -0.5$",
        ),
        (
            lambda: weighted_sum(torch.ones(2), math.inf * torch.ones(2, 2), AB),
            ValueError,
            "^values must be finite, got inf$",
        ),
        (
            lambda: weighted_sum(torch.ones(2), torch.eye(2), ["a"]),
            ValueError,
            r"^labels must hold 2 labels for shape \(2, 2\), got 1$",
        ),
    ],
)
def test_bad_input_is_named_with_what_came(draw, error, message):
    with pytest.raises(error, match=message):
        draw()

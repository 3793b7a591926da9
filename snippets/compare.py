"""Is what the code gave what the page shows? To the letter here, to the last digit elsewhere.

Under the pinned arithmetic an output must match exactly. Under another one, rounding may carry into
the last digit shown: numbers of three decimals or three significant digits may then differ by one
unit there, and nothing else may (`pytest`'s and Sybil's own NUMBER options accept 0.9 for 1.0; this
does not).
"""

import itertools
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

NUMBER = re.compile(  # atomic groups: of 1.5x no part is a number
    r"(?<![\w.])[-+\N{MINUS SIGN}]?(?>\d+(?:\.\d*)?|\.\d+)(?>(?:[eE][-+]?\d+)?)(?!\w)"
)
SAME, NEAR, DIFFERENT = "same", "near", "different"


def tidy(text: str) -> str:
    """Without what no reader sees: spaces at line ends and blank lines at the end."""
    text = re.sub(r"\r\n?", "\n", text)
    return re.sub(r"[ \t]+$", "", text, flags=re.M).rstrip("\n")


def compare_output(want: str, got: str) -> str:
    """SAME, NEAR (last digits differ by one) or DIFFERENT."""
    want, got = tidy(want), tidy(got)
    if want == got:
        return SAME
    skeletons = ["".join(NUMBER.sub(" \0 ", text).split()) for text in (want, got)]
    if skeletons[0] != skeletons[1]:
        return DIFFERENT
    pairs = zip(NUMBER.findall(want), NUMBER.findall(got), strict=True)
    return NEAR if all(w == g or _one_unit_apart(w, g) for w, g in pairs) else DIFFERENT


def compare_number(text: str, value: Any) -> str:
    """Judge the numbers in `text` against the numbers in `value`, to the digits shown."""
    got = show(text, value)
    if got == text:
        return SAME
    (want_words, wants), (got_words, gots) = _split(text), _split(got)
    if want_words != got_words:
        return DIFFERENT
    near = all(w == g or _one_unit_apart(w, g) for w, g in zip(wants, gots, strict=True))
    return NEAR if near and wants else DIFFERENT


def _split(text: str) -> tuple[list[str], list[str]]:
    """What stands between the numbers of `text`, and the numbers."""
    ends = [0, *(i for span in _spans(text) for i in span), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(ends)]
    return pieces[::2], pieces[1::2]


def show(text: str, value: Any) -> str:
    """`text` with its numbers replaced by those of `value`, each to the digits `text` shows.

    A text without digits is replaced by `str(value)`, and a `?` by the value to four decimals.
    """
    if isinstance(value, str):
        return value
    spans = _spans(text)
    if not any(char.isdigit() for char in text):
        if "?" not in text:
            return str(value)
        shapes = ("0.0000" if isinstance(v, float) else "0" for v in numbers(value))
        return text.replace("?", ", ".join(map(_format, shapes, numbers(value))), 1)
    if any(char.isdigit() and not any(a <= i < b for a, b in spans) for i, char in enumerate(text)):
        raise ValueError(f"cannot read the numbers in {text!r}: keep letters and signs apart")
    values = list(numbers(value))
    if len(values) != len(spans):
        raise ValueError(f"{text!r} shows {len(spans)} numbers, the expression gives {len(values)}")
    for (start, end), given in reversed(list(zip(spans, values, strict=True))):
        text = text[:start] + _format(text[start:end], given) + text[end:]
    return text


def _spans(text: str) -> list[tuple[int, int]]:
    """Where the numbers of `text` stand; the letters of a TeX command are not part of them."""
    bare = re.sub(r"\\[A-Za-z]+", lambda command: " " * len(command[0]), text)
    return [match.span() for match in NUMBER.finditer(bare)]


def as_recorded(text: str, value: Any) -> Any:
    """What `text` shows of `value`, as JSON can hold it and `compare_number` can judge it again."""
    if value is None:  # it was not run
        return None
    if isinstance(value, str) or not any(char.isdigit() for char in text):
        return str(value)
    return list(numbers(value))


def number_texts(text: str) -> list[str]:
    """The numbers of `text`, as they are written."""
    return [text[a:b] for a, b in _spans(text)]


def numbers(value: Any) -> Iterable[int | float]:
    """The numbers in `value`, row by row: of a tensor, of nested sequences, of a number."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)):
        yield value
    else:
        raise TypeError(f"expected numbers, got {type(value).__name__}: {value!r:.80}")


def _format(shown: str, value: int | float) -> str:
    """`value` with as many decimals as `shown` has, in its notation."""
    mantissa, e, exponent = shown.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    if isinstance(value, int) and not decimals and not e:
        text = str(value)
    else:
        text = f"{float(value):.{decimals}{'e' if e else 'f'}}"
        if not text.strip("-0."):
            text = text.lstrip("-")  # no negative zero
        if e:  # the exponent as wide as it is shown
            text, _, power = text.partition("e")
            sign = "+" if exponent.startswith("+") else ""
            text += f"e{int(power):{sign}0{len(exponent)}d}"
    if mantissa.endswith(".") and not e:
        text += "."
    if shown.startswith("+") and value >= 0:
        text = "+" + text
    return text.replace("-", "\N{MINUS SIGN}") if "\N{MINUS SIGN}" in shown else text


def _one_unit_apart(want: str, got: str) -> bool:
    """Whether two numbers differ by a unit of the last digit of the one that shows more digits.

    They may be of other widths: torch prints `2.` where all of a tensor is whole, else `2.0000`.
    """
    numbers = [Decimal(text.replace("\N{MINUS SIGN}", "-")) for text in (want, got)]
    powers = [int(number.as_tuple().exponent) for number in numbers]
    finer = numbers[powers.index(min(powers))]
    digits, unit = finer.as_tuple().digits, Decimal(1).scaleb(min(powers))
    places = len(re.split("[eE]", want if finer is numbers[0] else got)[0].partition(".")[2])
    enough = places >= 3 or (places and len(digits) >= 3)  # a count is right or wrong
    return bool(enough) and abs(numbers[0] - numbers[1]) <= unit

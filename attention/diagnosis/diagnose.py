"""Which known mistake does an attention make?

A function of the reader's is called with the inputs of `probes`. What it gives
is compared with attention as it should be and, where it differs, with the
wrong attentions of `mistakes`, alone or several together.
"""

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from attention.diagnosis.mistakes import WRONG, Wrong
from attention.diagnosis.probes import FORMS, PROBES, WORDS, Attend, Call, Case
from attention.validation import argument_error, type_name

# What shows only in a query that sees nothing, which another fault may make.
ASLEEP = (
    "gives NaN to a query that sees nothing",
    "fills with a large number, not with -inf",
)
TRIES = 20_000  # sets of faults that are tried for one more probe


# --8<-- [start:diagnose]
@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found; printed, it says so.

    Args:
        agrees: it did as `attention` does in every probe.
        faults: names in `mistakes.WRONG` of what it does wrong, which
            together explain every probe; () where nothing known does.
        instead: other faults that would explain them too, since no probe that
            the function allows tells them apart.
        probes: the probes that were tried, with what differs in each; "" where
            nothing does.
        untried: the probes that were not, and why.
    """

    agrees: bool
    faults: tuple[str, ...]
    instead: tuple[tuple[str, ...], ...]
    probes: dict[str, str]
    untried: dict[str, str]

    def __repr__(self) -> str:
        """Sentences."""
        return "\n".join(
            line
            for paragraph in self._paragraphs()
            for line in textwrap.wrap(paragraph, 70, break_on_hyphens=False)
        )

    def _paragraphs(self) -> Iterator[str]:
        differing = {name: how for name, how in self.probes.items() if how}
        if self.agrees:
            yield "It agrees with attention in all that was tried."
        elif self.faults:
            for name in self.faults:
                title, page = WRONG[name].chapter
                yield f"It {name}. Read “{title}”, {page}."
            for names in self.instead:
                yield f"Or it {' and '.join(names)}: no probe tells."
            for name, how in differing.items():
                if how.startswith("it "):
                    yield f"In the probe “{name}” {how}."
            yield f"Nothing else differs in {len(self.probes)} probes."
        else:
            first, how = next(iter(differing.items()))
            raises = all(how.startswith("it ") for how in differing.values())
            does = "gives no answer" if raises else "differs from attention"
            yield f"It {does}, as none of the known mistakes does."
            yield f"First, in the probe “{first}”: {how}."
            yield f"Differs in: {', '.join(differing)}."
        same = [name for name in self.probes if name not in differing]
        if same and not self.faults:
            yield f"Agrees in: {', '.join(same)}."
        reasons: dict[str, list[str]] = {}
        for name, why in self.untried.items():
            reasons.setdefault(why, []).append(name)
        no_word = [why[8:] for why in reasons if why.startswith("no word ")]
        if self.untried and not self.faults:
            said = [
                f"{', '.join(names)} ({why})"
                for why, names in reasons.items()
                if not why.startswith("no word ")
            ]
            said += [f"what has the words {', '.join(no_word)}"] * any(no_word)
            yield f"Not tried: {'; '.join(said)}."


def diagnose(fn: Attend, **fixed: Any) -> Diagnosis:
    """Say which known mistake a function makes, or that it agrees.

    It is called with tensors, float32, and with those words of `textbook` that
    it has a parameter for; is_causal, attn_mask, dropout_p and num_heads are
    understood too. A word that it has no parameter for is not tried, unless it
    is given here.

    Args:
        fn: a function of query, key and value; of two tensors, what asks and
            what is asked; or of one that attends to itself; or a module. Of
            the shapes (B, H, L, D), (L, D) and (B, L, D) it is given the first
            that it takes; with n_heads, (B, L, H * D).
        fixed: words that hold in every call, such as causal=True for a
            function that is always causal. fn is given them if it takes them.
            dtype=torch.float16 or torch.bfloat16 tries that as well.

    Returns:
        A `Diagnosis`, which prints as sentences.

    Raises:
        TypeError: fn is not callable, or a word is none.
        ValueError: fn needs parameters that are neither tensors nor words.

    Example:
        >>> import torch
        >>> from attention import diagnose
        >>> def attend(query, key, value):
        ...     return torch.softmax(query @ key.mT, dim=-1) @ value
        >>> diagnose(attend)
        It does not scale the scores. Read “Why divide by √d_k”,
        foundations/scaling.
        Nothing else differs in 5 probes.
        >>> diagnose(attend, scale=1).agrees
        True
    """
    if not callable(fn):
        raise argument_error("fn", "be a function", type_name(fn), TypeError)
    for word in fixed:
        if word not in (*WORDS, "dtype"):
            known = ", ".join((*WORDS, "dtype"))
            raise TypeError(f"{word!r} is no word of diagnose: {known}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on so little a second one only waits
    try:
        return _diagnose(Call(fn, fixed))
    finally:
        torch.set_num_threads(threads)


# --8<-- [end:diagnose]


def _diagnose(call: Call) -> Diagnosis:
    cases, untried = [], dict[str, str]()
    for probe in PROBES:
        if probe.form and call.form != FORMS[0]:
            continue
        if why := call.cannot(probe):
            untried[probe.name] = why
            continue
        case = Case(probe, call)
        if isinstance(case.found, Exception) and probe.optional:
            untried[probe.name] = case.difference()
        else:
            cases.append(case)
    probes = {case.probe.name: case.difference() for case in cases}
    ways = _explain([c for c in cases if isinstance(c.found, dict)])
    names = [tuple(fault.name for fault in faults) for faults in ways]
    return Diagnosis(
        agrees=not any(probes.values()),
        faults=names[0] if names else (),
        instead=tuple(names[1:]),
        probes=probes,
        untried=untried,
    )


def _explain(cases: list[Case]) -> list[tuple[Wrong, ...]]:
    """The smallest sets of faults that do what the function does, in all."""
    # Those in which it is wrong come first, for there most guesses end.
    cases = sorted(cases, key=lambda case: not case.difference())
    known, order = list(WRONG.values()), list(WRONG)

    def reach(faults: tuple[Wrong, ...]) -> int:
        failing = (n for n, case in enumerate(cases) if not case.shows(faults))
        return next(failing, len(cases))

    best: list[tuple[Wrong, ...]] = [()]
    far = reach(())
    while far < len(cases):
        starts = [*best, *((*way, WRONG[x]) for way in best for x in ASLEEP)]
        for n in (1, 2, 3):  # the fewest more that explain the next case
            seen = [x for x in known if n == 1 or cases[far].changes((x,))]
            if len(starts) * math.comb(len(seen), n) > TRIES:
                return []
            ways = [
                way
                for faults in starts
                for more in combinations(seen, n)
                if (way := (*faults, *more))
                and len({x.step for x in way}) == len(way)
            ]
            reached = [reach(faults) for faults in ways]
            if max(reached) > far:
                break
        else:
            return []
        ends = {w: n for w, n in zip(ways, reached, strict=True) if n > far}
        fewest = min(len(faults) for faults in ends)
        far = max(n for faults, n in ends.items() if len(faults) == fewest)
        best = [w for w, n in ends.items() if (len(w), n) == (fewest, far)]
    sets: set[tuple[Wrong, ...]] = {
        tuple(sorted(faults, key=lambda x: order.index(x.name)))
        for faults in best
        if faults
    }
    return sorted(sets, key=lambda way: [order.index(x.name) for x in way])

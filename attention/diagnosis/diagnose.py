"""Which known mistake does an attention make?

The function is called with the inputs of `probes`. Its results are compared
with textbook attention and, where they differ, with textbook attention that
makes one or several of the `mistakes`.
"""

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from attention.diagnosis.mistakes import MISTAKES, Mistake
from attention.diagnosis.probes import (
    FORMS,
    OPTIONS,
    PROBES,
    Attend,
    Call,
    Case,
)
from attention.validation import argument_error, type_name

# These show only for a fully masked query, which another mistake may cause.
DORMANT = (
    "gives NaN to a query that sees nothing",
    "fills with a large number, not with -inf",
)
TRIES = 20_000  # sets of mistakes that are tried for one more probe


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found; it prints as sentences.

    Args:
        agrees: the function agrees with `attention` in every probe.
        mistakes: names in `mistakes.MISTAKES` that together explain every
            probe; () where no known mistakes do.
        alternatives: other mistakes that explain the probes as well, since no
            probe that the function allows tells them apart.
        probes: the probes that were tried, and how the function differs in
            each; "" where it agrees.
        untried: the probes that were not tried, and why.
    """

    agrees: bool
    mistakes: tuple[str, ...]
    alternatives: tuple[tuple[str, ...], ...]
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
        elif self.mistakes:
            for name in self.mistakes:
                title, page = MISTAKES[name].chapter
                yield f"It {name}. Read “{title}”, {page}."
            for names in self.alternatives:
                either = " and ".join(names)
                yield f"Or it {either}: no probe tells the two apart."
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
        if same and not self.mistakes:
            yield f"Agrees in: {', '.join(same)}."
        reasons: dict[str, list[str]] = {}
        for name, why in self.untried.items():
            reasons.setdefault(why, []).append(name)
        if self.untried and not self.mistakes:
            options, parts = list[str](), list[str]()
            for why, probes in reasons.items():
                if why.startswith("no option "):
                    options.append(why.removeprefix("no option "))
                else:
                    parts.append(f"{', '.join(probes)} ({why})")
            if options:
                parts.append(f"the options {', '.join(options)}")
            yield f"Not tried: {'; '.join(parts)}."


def diagnose(fn: Attend, **fixed: Any) -> Diagnosis:
    """Say which known mistake a function makes, or that it agrees.

    The function is called with float32 tensors and with those options of
    `textbook` that are among its parameters, where is_causal, attn_mask,
    dropout_p and num_heads count too. Other options are tried only if they are
    given here.

    Args:
        fn: a function or module of query, key and value; of two tensors, query
            and key, which is also the value; or of one, for self-attention. Of
            the shapes (B, H, L, D), (L, D) and (B, L, D) it gets the first
            that it accepts; with n_heads, (B, L, H * D).
        fixed: options that hold in every call, such as causal=True for a
            function that is always causal; passed to fn if it has such a
            parameter. dtype=torch.float16 or torch.bfloat16 tries that dtype
            as well.

    Returns:
        A `Diagnosis`, which prints as sentences.

    Raises:
        TypeError: fn is not callable, or an option is unknown.
        ValueError: fn requires a parameter that is neither a tensor nor an
            option.

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
    known = (*OPTIONS, "dtype")
    for option in fixed:
        if option not in known:
            rule = f"be one of {', '.join(known)}"
            raise argument_error("option", rule, repr(option), TypeError)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for tiny inputs a second thread is overhead
    try:
        return _diagnose(Call(fn, fixed))
    finally:
        torch.set_num_threads(threads)


def _diagnose(call: Call) -> Diagnosis:
    cases, untried = [], dict[str, str]()
    for probe in PROBES:
        if probe.form and call.form != FORMS[0]:
            continue
        if why := call.unsupported(probe):
            untried[probe.name] = why
            continue
        case = Case(probe, call)
        if isinstance(case.result, Exception) and probe.optional:
            untried[probe.name] = case.difference()
        else:
            cases.append(case)
    probes = {case.probe.name: case.difference() for case in cases}
    sets = _explain([c for c in cases if isinstance(c.result, dict)])
    names = [tuple(mistake.name for mistake in found) for found in sets]
    return Diagnosis(
        agrees=not any(probes.values()),
        mistakes=names[0] if names else (),
        alternatives=tuple(names[1:]),
        probes=probes,
        untried=untried,
    )


def _explain(cases: list[Case]) -> list[tuple[Mistake, ...]]:
    """The smallest sets of mistakes that explain every case."""
    # Cases that differ come first, since most candidates fail there.
    cases = sorted(cases, key=lambda case: not case.difference())
    known, order = list(MISTAKES.values()), list(MISTAKES)

    def n_explained(mistakes: tuple[Mistake, ...]) -> int:
        """How many cases, from the first on, these mistakes explain."""
        for n, case in enumerate(cases):
            if not case.explained_by(mistakes):
                return n
        return len(cases)

    best: list[tuple[Mistake, ...]] = [()]
    done = n_explained(())
    while done < len(cases):
        dormant = [(*x, MISTAKES[name]) for x in best for name in DORMANT]
        starts = [*best, *dormant]
        for n in (1, 2, 3):  # the fewest more that explain the next case
            more = [x for x in known if n == 1 or cases[done].reveals((x,))]
            if len(starts) * math.comb(len(more), n) > TRIES:
                return []
            candidates = [
                candidate
                for start in starts
                for added in combinations(more, n)
                if (candidate := (*start, *added))
                and len({x.step for x in candidate}) == len(candidate)
            ]
            explained = [n_explained(candidate) for candidate in candidates]
            if max(explained) > done:
                break
        else:
            return []
        # Of those that explain more, the fewest mistakes, then the most cases.
        ranked = [
            ((len(x), -n), x)
            for x, n in zip(candidates, explained, strict=True)
            if n > done
        ]
        first, _ = min(ranked, key=lambda pair: pair[0])
        best = [x for rank, x in ranked if rank == first]
        done = -first[1]
    sets = {
        tuple(sorted(mistakes, key=lambda x: order.index(x.name)))
        for mistakes in best
        if mistakes
    }
    return sorted(sets, key=lambda found: [order.index(x.name) for x in found])

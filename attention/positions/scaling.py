"""RoPE scaling: lower frequencies, for texts longer than those trained on.

A rule takes the frequencies w_i of `RotaryEmbedding` and returns new ones and
an attention factor, which multiplies every cosine and sine. A pair makes
length * w_i / (2 pi) turns in a text of that length.

Sources: Chen et al., "Extending context window of large language models via
positional interpolation" (2023), equation (4); Peng et al., "YaRN" (2023),
section 3, whose released code we follow where it differs from the paper;
Grattafiori et al., "The Llama 3 herd of models" (2024) and its released code.
"""

import math

import torch
from torch import Tensor

from attention.positions.rotary import RopeScaling
from attention.validation import argument_error, check_number, check_sizes


def rope_scaling_linear(factor: float | int) -> RopeScaling:
    """Position interpolation: every frequency is divided by `factor`.

    Args:
        factor: how many times longer the text may be; above 0.

    Returns:
        The rule, frequencies -> (frequencies / factor, 1.0).

    Raises:
        TypeError, ValueError: factor is not a finite number above 0.

    Source:
        Chen et al. (2023), equation (4).

    Example:
        >>> import torch
        >>> from attention import rope_scaling_linear
        >>> rope_scaling_linear(4)(torch.tensor([1.0, 0.1]))
        (tensor([0.2500, 0.0250]), 1.0)
    """
    factor = check_number("factor", factor)
    return lambda frequencies: (frequencies / factor, 1.0)


def rope_scaling_ntk(factor: float | int) -> RopeScaling:
    """NTK-aware scaling: w_i / factor^(i / (n - 1)) for pair i of n.

    The same as base * factor^(R / (R - 2)) in place of base: the highest
    frequency stays, and the lowest is divided by `factor`.

    Args:
        factor: how many times longer the text may be; above 0.

    Returns:
        The rule, frequencies -> (new frequencies, 1.0). It needs two
        frequencies or more.

    Raises:
        TypeError, ValueError: as `rope_scaling_linear`.

    Source:
        Peng et al. (2023), section 3.1; first published by bloc97 in 2023.

    Example:
        >>> import torch
        >>> from attention import rope_scaling_ntk
        >>> rope_scaling_ntk(4)(torch.tensor([1.0, 0.1, 0.01]))
        (tensor([1.0000, 0.0500, 0.0025]), 1.0)
    """
    factor = check_number("factor", factor)

    def rule(frequencies: Tensor) -> tuple[Tensor, float]:
        return frequencies * factor ** -_fractions(frequencies), 1.0

    return rule


def rope_scaling_yarn(
    factor: float | int,
    original_length: int,
    *,
    beta_fast: float | int = 32.0,
    beta_slow: float | int = 1.0,
    truncate: bool = True,
    attention_factor: float | int | None = None,
) -> RopeScaling:
    """YaRN: low frequencies are divided by `factor`, high ones are kept.

        new w_i = r_i w_i / factor + (1 - r_i) w_i

    The ramp r is 0 where a pair makes beta_fast turns or more in the original
    length and 1 where it makes beta_slow or fewer. In between r is linear in
    i, as in the authors' code (in their paper, in the number of turns). The
    constants are empirical.

    Args:
        factor: how many times longer the text may be; above 0.
        original_length: positions that the model was trained on.
        beta_fast: turns from which on a frequency is kept.
        beta_slow: turns up to which a frequency is divided by `factor`.
        truncate: round the ends of the ramp outwards to whole pairs, as the
            authors do; gpt-oss does not.
        attention_factor: multiplies every cosine and sine, and so a score by
            its square. None is 0.1 ln(factor) + 1, or 1 where factor < 1.

    Returns:
        The rule, frequencies -> (new frequencies, attention_factor). It needs
        two falling frequencies or more.

    Source:
        Peng et al. (2023), sections 3.2 to 3.4, and their released code.

    Example:
        >>> import torch
        >>> from attention import rope_scaling_yarn
        >>> rope_scaling_yarn(4, 1024)(torch.tensor([1.0, 0.1, 0.01]))
        (tensor([1.0000, 0.0750, 0.0050]), 1.138629436111989)
    """
    factor = check_number("factor", factor)
    check_sizes(original_length=original_length)
    beta_slow = check_number("beta_slow", beta_slow)
    beta_fast = check_number("beta_fast", beta_fast, above=beta_slow)
    if attention_factor is None:
        attention_factor = 0.1 * math.log(max(factor, 1)) + 1
    amplitude = check_number("attention_factor", attention_factor)

    def rule(frequencies: Tensor) -> tuple[Tensor, float]:
        n = len(frequencies)
        index = _fractions(frequencies) * (n - 1)  # 0, 1, ... n - 1
        # Pair i makes length w_0 / (2 pi) e^(-decay i) turns.
        decay = math.log(frequencies[0] / frequencies[-1]) / (n - 1)
        turns = math.log(original_length * frequencies[0] / (2 * math.pi))
        low = (turns - math.log(beta_fast)) / decay
        high = (turns - math.log(beta_slow)) / decay
        if truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * n - 1)
        ramp = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
        interpolated = frequencies / factor
        return ramp * interpolated + (1 - ramp) * frequencies, amplitude

    return rule


def rope_scaling_llama3(
    factor: float | int,
    original_length: int,
    *,
    low_freq_factor: float | int = 1.0,
    high_freq_factor: float | int = 4.0,
) -> RopeScaling:
    """Llama 3's rule: as YaRN, with the ramp linear in the number of turns.

    The constants are empirical.

    Args:
        factor: how many times longer the text may be; above 0.
        original_length: positions that the model was trained on.
        low_freq_factor: turns up to which a frequency is divided by `factor`.
        high_freq_factor: turns from which on a frequency is kept.

    Returns:
        The rule, frequencies -> (new frequencies, 1.0).

    Source:
        The code released with Llama 3.1; Grattafiori et al. (2024) give the
        base alone.

    Example:
        >>> import torch
        >>> from attention import rope_scaling_llama3
        >>> rope_scaling_llama3(8, 64)(torch.tensor([1.0, 0.25, 0.04]))
        (tensor([1.0000, 0.1440, 0.0050]), 1.0)
    """
    factor = check_number("factor", factor)
    check_sizes(original_length=original_length)
    low = check_number("low_freq_factor", low_freq_factor)
    high = check_number("high_freq_factor", high_freq_factor, above=low)

    def rule(frequencies: Tensor) -> tuple[Tensor, float]:
        turns = original_length * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return kept * frequencies + (1 - kept) * frequencies / factor, 1.0

    return rule


def _fractions(frequencies: Tensor) -> Tensor:
    """Fractions i / (n - 1) of n pairs, from 0 to 1."""
    n = len(frequencies)
    if n < 2:
        raise argument_error("frequencies", "be two or more for this rule", n)
    device = frequencies.device
    index = torch.arange(n, dtype=frequencies.dtype, device=device)
    return index / (n - 1)

"""Masks as small functions: which query may attend to which key.

A mask mod takes the batch row, the head and the positions of a query and a
key, and says whether this query may attend to this key. It knows of no length
and holds no matrix, so the same mod serves sentences of every length, a cache
and FlexAttention's kernels. All hold for scalar tensors, as under vmap, and
for tensors that broadcast.

Combine them with and_masks and or_masks of
torch.nn.attention.flex_attention.
"""

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from attention.checks import INTEGERS, kind, wrong
from attention.mods import MaskMod


# --8<-- [start:causal]
def causal(
    b: Integer[Tensor, "*#n"],
    h: Integer[Tensor, "*#n"],
    q_idx: Integer[Tensor, "*#n"],
    kv_idx: Integer[Tensor, "*#n"],
) -> Bool[Tensor, "*#n"]:
    """Mask mod of a model that writes: a query sees itself and what is before.

    Args:
        b: batch row; not used.
        h: head; not used.
        q_idx: position of the query.
        kv_idx: position of the key, counted from the same start.

    Returns:
        True where the query may attend to the key.

    Source:
        Vaswani et al., "Attention is all you need" (2017), section 3.2.3.

    Example:
        >>> import torch
        >>> from attention import attention_weights, causal
        >>> x = torch.zeros(3, 2)
        >>> attention_weights(x, x, mask=causal)
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.3333, 0.3333, 0.3333]])
    """
    return q_idx >= kv_idx


# --8<-- [end:causal]


# --8<-- [start:padding]
def padding(lengths: Integer[Tensor, "B"]) -> MaskMod:
    """Mask mod of a batch whose rows are filled up: only real keys are seen.

    Args:
        lengths: for each batch row, how many of its keys are real: the keys at
            positions 0 to lengths[b] - 1. Integers, none negative; a row of
            length 0 gets zeros from attention.

    Returns:
        The mask mod, True where kv_idx < lengths[b].

    Raises:
        TypeError: lengths is no tensor of int32 or int64.
        ValueError: lengths is not (B,), or one of them is negative.

    Example:
        >>> import torch
        >>> from attention import attention_weights, padding
        >>> x = torch.zeros(2, 1, 3, 4)
        >>> mask = padding(torch.tensor([3, 1]))
        >>> attention_weights(x, x, mask=mask)[:, 0, 0]
        tensor([[0.3333, 0.3333, 0.3333],
                [1.0000, 0.0000, 0.0000]])
    """
    if not isinstance(lengths, Tensor) or lengths.dtype not in INTEGERS:
        rule = "be a tensor of int32 or int64"
        raise wrong("lengths", rule, kind(lengths), TypeError)
    if lengths.dim() != 1:
        raise wrong("lengths", "be (B,)", f"shape {tuple(lengths.shape)}")
    if not torch.compiler.is_compiling() and bool((lengths < 0).any()):
        raise wrong("lengths", "be at least 0", lengths.tolist())

    def padding_mask(
        b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        return kv_idx < lengths[b]

    return padding_mask


# --8<-- [end:padding]

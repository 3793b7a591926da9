"""Mask mods: functions that say which query may attend to which key.

A mask mod takes a batch entry b, a head h and the positions q_idx and kv_idx
of a query and a key, and returns True where the query may attend to the key.
Those of this module are elementwise: called with tensors that broadcast they
return a Boolean tensor for all pairs, and kernels use that; any other mod is
called through torch.vmap, with scalar tensors. and_masks, or_masks,
create_mask and create_block_mask of torch.nn.attention.flex_attention take
mask mods too.

Sources: sliding window, Beltagy et al., "Longformer" (2020), section 3.1, and
Jiang et al., "Mistral 7B" (2023), section 2; attention sinks, Xiao et al.,
"StreamingLLM" (2023), section 3.2; prefix LM, Raffel et al., "T5" (2020),
section 3.2.1; documents, padding and offsets, Dong et al., "Flex Attention"
(2024).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from attention.masking import MaskMod, Offset, elementwise
from attention.validation import (
    argument_error,
    check_integers,
    check_sizes,
    type_name,
)


# --8<-- [start:causal]
@elementwise
def causal(
    b: Integer[Tensor, "*#n"],
    h: Integer[Tensor, "*#n"],
    q_idx: Integer[Tensor, "*#n"],
    kv_idx: Integer[Tensor, "*#n"],
) -> Bool[Tensor, "*#n"]:
    """Causal mask: position i attends to positions <= i.

    Args:
        b: batch entry; not used.
        h: head; not used.
        q_idx: position of the query.
        kv_idx: position of the key, counted from the same start.

    Returns:
        True where q_idx >= kv_idx.

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


# --8<-- [start:sliding_window]
def sliding_window(size: int) -> MaskMod:
    """Causal sliding window: position i attends to i - size + 1, ..., i.

    Args:
        size: keys in the window, the query's own included; at least 1.

    Returns:
        The mask mod, True where 0 <= q_idx - kv_idx < size.

    Raises:
        TypeError, ValueError: size is not an integer, or is below 1.
    """
    check_sizes(size=size)
    return elementwise(
        lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (q_idx - kv_idx < size)
    )


# --8<-- [end:sliding_window]


# --8<-- [start:first_tokens]
def first_tokens(n: int) -> MaskMod:
    """Every query attends to the first n keys, and to no others.

    Attention sinks are and_masks(causal, or_masks(sliding_window(size),
    first_tokens(n))); alone this mask is not causal.

    Args:
        n: number of keys, those at positions 0 to n - 1; at least 0.

    Returns:
        The mask mod, True where kv_idx < n.

    Raises:
        TypeError, ValueError: n is not an integer, or is below 0.
    """
    check_sizes(0, n=n)
    return elementwise(lambda b, h, q_idx, kv_idx: kv_idx < n)


# --8<-- [end:first_tokens]


# --8<-- [start:prefix_lm]
def prefix_lm(n: int) -> MaskMod:
    """Prefix LM: bidirectional in the first n tokens, causal after them.

    For prefixes of different lengths in a batch write or_masks(causal,
    padding(lengths)).

    Args:
        n: tokens in the prefix; at least 0.

    Returns:
        The mask mod, True where kv_idx < n or q_idx >= kv_idx.

    Raises:
        TypeError, ValueError: n is not an integer, or is below 0.
    """
    check_sizes(0, n=n)
    return elementwise(
        lambda b, h, q_idx, kv_idx: (kv_idx < n) | (q_idx >= kv_idx)
    )


# --8<-- [end:prefix_lm]


# --8<-- [start:document]
def document(ids: Integer[Tensor, "T"] | Integer[Tensor, "B T"]) -> MaskMod:
    """Document mask for packed sequences: tokens attend within a document.

    Args:
        ids: the document at each position, (T,) for all batch entries or
            (B, T). Any integers; documents need not be contiguous.

    Returns:
        The mask mod, True where query and key are of one document. A position
        outside 0 to T - 1 belongs to none.

    Raises:
        TypeError: ids is not a tensor of int32 or int64.
        ValueError: ids is neither (T,) nor (B, T), or is empty.

    Example:
        >>> import torch
        >>> from attention import attention_weights, document
        >>> x = torch.zeros(3, 2)
        >>> attention_weights(x, x, mask=document(torch.tensor([7, 7, 8])))
        tensor([[0.5000, 0.5000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 1.0000]])
    """
    check_integers("ids", ids)
    if ids.dim() not in (1, 2) or ids.numel() == 0:
        rule = "be (T,) or (B, T), no size 0"
        raise argument_error("ids", rule, f"shape {tuple(ids.shape)}")
    last = ids.shape[-1] - 1

    @elementwise
    def document_mask(
        b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        q, kv = q_idx.clamp(0, last), kv_idx.clamp(0, last)
        same = ids[q] == ids[kv] if ids.dim() == 1 else ids[b, q] == ids[b, kv]
        for index in (q_idx, kv_idx):
            same = same & (index >= 0) & (index <= last)
        return same

    return document_mask


# --8<-- [end:document]


# --8<-- [start:padding]
def padding(lengths: Integer[Tensor, "B"]) -> MaskMod:
    """Key-padding mask: queries attend to the first lengths[b] keys.

    Args:
        lengths: number of keys of each batch entry that are not padding,
            integers (B,), none negative. An entry of length 0 gets zeros.

    Returns:
        The mask mod, True where kv_idx < lengths[b].

    Raises:
        TypeError: lengths is not a tensor of int32 or int64.
        ValueError: lengths is not (B,), or has a negative entry.
    """
    check_integers("lengths", lengths)
    if lengths.dim() != 1:
        raise argument_error(
            "lengths", "be (B,)", f"shape {tuple(lengths.shape)}"
        )
    if not torch.compiler.is_compiling() and bool((lengths < 0).any()):
        raise argument_error("lengths", "be at least 0", lengths.tolist())
    return elementwise(lambda b, h, q_idx, kv_idx: kv_idx < lengths[b])


# --8<-- [end:padding]


# --8<-- [start:shift]
def shift(
    mod: Callable[..., Tensor], q: Offset, kv: Offset
) -> Callable[..., Tensor]:
    """A mod for kernels that count the positions of a block from 0.

    Args:
        mod: a mask mod or a score mod.
        q: position of the block's first query, an int or integers (B,).
        kv: position of the block's first key.

    Returns:
        The mod of q_idx + q and kv_idx + kv. `attention` does the same with
        query_offset and key_offset.

    Raises:
        TypeError: mod is not a function, or q or kv is neither an int nor a
            tensor of int32 or int64.
        ValueError: q or kv is a tensor, but not (B,).

    Example:
        >>> import torch
        >>> from attention import causal, shift
        >>> mask = shift(causal, q=4, kv=0)
        >>> mask(0, 0, torch.tensor(1), torch.tensor([4, 5, 6]))
        tensor([ True,  True, False])
    """
    if not callable(mod):
        raise argument_error("mod", "be a function", type_name(mod), TypeError)
    for name, offset in (("q", q), ("kv", kv)):
        if type(offset) is not int:
            check_integers(name, offset)
        if isinstance(offset, Tensor) and offset.dim() != 1:
            raise argument_error(
                name, "be an int or (B,)", tuple(offset.shape)
            )

    # FlexAttention takes a function with four named arguments for a mask mod;
    # a score mod has five.
    def shifted(
        b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, *last: Tensor
    ) -> Tensor:
        *score, b, h, q_idx, kv_idx = (b, h, q_idx, kv_idx, *last)
        q_idx = q_idx + (q[b] if isinstance(q, Tensor) else q)
        kv_idx = kv_idx + (kv[b] if isinstance(kv, Tensor) else kv)
        return mod(*score, b, h, q_idx, kv_idx)

    if getattr(mod, "elementwise", False):
        return elementwise(shifted)
    return shifted


# --8<-- [end:shift]

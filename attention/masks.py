"""Masks as small functions: which query may attend to which key.

A mask mod takes the batch row, the head and the positions of a query and a
key, and says whether this query may attend to this key. It knows of no length
and holds no matrix, so the same mod serves sentences of every length, a cache
and FlexAttention's kernels. All hold for scalar tensors, as under vmap, and
for tensors that broadcast.

Combine them with and_masks and or_masks of
torch.nn.attention.flex_attention; its create_mask and create_block_mask make
a tensor or a BlockMask of them.

Sources: a window of keys, Beltagy et al., "Longformer" (2020), section 3.1,
and Jiang et al., "Mistral 7B" (2023), section 2; first tokens that all see,
Xiao et al., "StreamingLLM" (2023), section 3.2; a prefix read both ways,
Raffel et al., "T5" (2020), section 3.2.1; documents, padding and offsets,
Dong et al., "Flex Attention" (2024).
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


# --8<-- [start:sliding_window]
def sliding_window(size: int) -> MaskMod:
    """Mask mod of a short memory: a query sees itself and size - 1 before it.

    Args:
        size: keys in the window, the query's own included, at least 1. With 1
            a token sees itself alone.

    Returns:
        The mask mod, True where 0 <= q_idx - kv_idx < size. It is causal.

    Raises:
        TypeError, ValueError: size is no integer, or below 1.

    Example:
        >>> import torch
        >>> from attention import attention_weights, sliding_window
        >>> x = torch.zeros(4, 2)
        >>> attention_weights(x, x, mask=sliding_window(2))
        tensor([[1.0000, 0.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 0.5000, 0.5000]])
    """
    check_sizes(size=size)

    @elementwise
    def window_mask(
        b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        return (q_idx >= kv_idx) & (q_idx - kv_idx < size)

    return window_mask


# --8<-- [end:sliding_window]


# --8<-- [start:first_tokens]
def first_tokens(n: int) -> MaskMod:
    """Mask mod that shows the first n keys to every query, and no others.

    Alone it is not causal: query 0 sees key n - 1. With a window and `causal`
    it makes attention sinks: and_masks(causal, or_masks(sliding_window(size),
    first_tokens(n))).

    Args:
        n: keys that all see, those at positions 0 to n - 1; 0 is none.

    Returns:
        The mask mod, True where kv_idx < n.

    Raises:
        TypeError, ValueError: n is no integer, or below 0.

    Example:
        >>> import torch
        >>> from attention import attention_weights, first_tokens
        >>> x = torch.zeros(3, 2)
        >>> attention_weights(x, x, mask=first_tokens(2))[0]
        tensor([0.5000, 0.5000, 0.0000])
    """
    check_sizes(0, n=n)

    @elementwise
    def first_mask(
        b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        return kv_idx < n

    return first_mask


# --8<-- [end:first_tokens]


# --8<-- [start:prefix_lm]
def prefix_lm(n: int) -> MaskMod:
    """Mask mod of a model that reads n tokens both ways, and writes the rest.

    Where the rows of a batch have prefixes of different lengths, write
    or_masks(causal, padding(lengths)).

    Args:
        n: tokens in the prefix, which all queries see whole; 0 is `causal`.

    Returns:
        The mask mod, True where kv_idx < n or q_idx >= kv_idx.

    Raises:
        TypeError, ValueError: n is no integer, or below 0.

    Example:
        >>> import torch
        >>> from attention import attention_weights, prefix_lm
        >>> x = torch.zeros(3, 2)
        >>> attention_weights(x, x, mask=prefix_lm(2))
        tensor([[0.5000, 0.5000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.3333, 0.3333, 0.3333]])
    """
    check_sizes(0, n=n)

    @elementwise
    def prefix_mask(
        b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        return (kv_idx < n) | (q_idx >= kv_idx)

    return prefix_mask


# --8<-- [end:prefix_lm]


# --8<-- [start:document]
def document(ids: Integer[Tensor, "T"] | Integer[Tensor, "B T"]) -> MaskMod:
    """Mask mod of texts packed into one row: each sees its own tokens alone.

    Combine it with `causal` where the model writes.

    Args:
        ids: the document of the token at each position, (T,) for all rows of
            a batch or (B, T) for each. Integers of any value; documents need
            not be contiguous.

    Returns:
        The mask mod, True where query and key belong to one document. A
        position outside 0 to T - 1 belongs to none.

    Raises:
        TypeError: ids is no tensor of int32 or int64.
        ValueError: ids is neither (T,) nor (B, T), or has no entry.

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
        for place in (q_idx, kv_idx):
            same = same & (place >= 0) & (place <= last)
        return same

    return document_mask


# --8<-- [end:document]


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
    check_integers("lengths", lengths)
    if lengths.dim() != 1:
        raise argument_error(
            "lengths", "be (B,)", f"shape {tuple(lengths.shape)}"
        )
    if not torch.compiler.is_compiling() and bool((lengths < 0).any()):
        raise argument_error("lengths", "be at least 0", lengths.tolist())

    @elementwise
    def padding_mask(
        b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        return kv_idx < lengths[b]

    return padding_mask


# --8<-- [end:padding]


# --8<-- [start:shift]
def shift(
    mod: Callable[..., Tensor], q: Offset, kv: Offset
) -> Callable[..., Tensor]:
    """The same mod for a block that begins elsewhere.

    A cache, a ring and a split of the keys compute a part of all pairs. Their
    kernels count from 0; the mod must not.

    Args:
        mod: a mask mod or a score mod, which speaks of positions.
        q: the position of the block's first query: an int, or integers (B,),
            one for each row of the batch.
        kv: the position of the block's first key.

    Returns:
        The mod with q_idx + q and kv_idx + kv in the places of q_idx and
        kv_idx. `attention` does the same with query_offset and key_offset.

    Raises:
        TypeError: mod is no function, or q or kv neither an int nor a tensor
            of int32 or int64.
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

    # A score mod's arguments are five. FlexAttention counts those that have a
    # name, and takes a function with four for a mask mod.
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

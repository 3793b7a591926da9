"""ONNX's published node tests, said in the words of this package.

`load` makes the cases of three operators, in memory: onnx computes inputs and expected outputs
with NumPy when the module that holds them is imported. `run` translates a node, its attributes
and its inputs into calls of the package, and returns the node's outputs. What cannot be said
raises NotImplementedError.

Source: onnx.ai/onnx/operators, Attention (opsets 23 to 25), RotaryEmbedding (23) and
FlexAttention (ai.onnx.preview 1).
"""

import importlib
import math

import numpy as np
import onnx
import torch
from onnx.backend.test.case import node as node_cases
from torch import Tensor
from torch.nn.attention.flex_attention import and_masks

from attention import (
    attention,
    attention_scores,
    attention_weights,
    causal,
    padding,
    rotate,
    sliding_window,
    softcap,
)

MODULES = {
    "Attention": "attention",
    "RotaryEmbedding": "rotaryembedding",
    "FlexAttention": "flexattention",
}


def load():
    """Every case of the three operators by its ONNX name, also the expanded ones."""
    state = np.random.get_state()
    np.random.seed(0)  # some cases draw without seeding
    for module in MODULES.values():
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    np.random.set_state(state)
    return {case.name.removeprefix("test_"): case for case in node_cases._NodeTestCases}


def is_expanded(name):
    """Whether a case holds the operator's definition in smaller operators, for the same arrays."""
    return "_expanded" in name


def run(case):
    """The outputs of a case's node: our own, and the expected ones, as pairs of tensors."""
    node = case.model.graph.node[0]
    arrays, expected = case.data_sets[0]
    given = iter(arrays)
    inputs = [as_tensor(next(given)) if name else None for name in node.input]
    attributes = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
    outputs = OPERATORS[node.op_type](*inputs, **attributes)
    wanted = [out for out, name in zip(outputs, node.output, strict=False) if name]
    return list(zip(wanted, map(as_tensor, expected), strict=True))


def as_tensor(array):
    if array.dtype.name == "bfloat16":  # a type of ml_dtypes, which torch does not read
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


# --- Attention ----------------------------------------------------------------


def attention_node(
    query,
    key,
    value,
    attn_mask=None,
    past_key=None,
    past_value=None,
    nonpad_kv_seqlen=None,
    *,
    is_causal=0,
    scale=None,
    softcap=0.0,
    q_num_heads=None,
    kv_num_heads=None,
    qk_matmul_output_mode=0,
    softmax_precision=onnx.TensorProto.FLOAT,
    left_window_size=-1,
    right_window_size=-1,
):
    """Attention: the output, the keys and values with the cache, and what the mode shows."""
    dtype, packed = query.dtype, query.dim() == 3
    if packed:
        query = split_heads(query, q_num_heads)
        key, value = split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    if past_key is not None:
        key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
    present = (key, value)
    if softmax_precision == onnx.TensorProto.DOUBLE:  # float32 is what we never go below
        query, key, value = query.double(), key.double(), value.double()

    # Keys stand at 0, 1, ...; the queries after the cache, at the end of what is filled, or, with
    # neither, at 0 like the keys: ONNX's causal is then top-left.
    start = 0
    if past_key is not None:
        start = past_key.shape[2]
    elif nonpad_kv_seqlen is not None:
        start = nonpad_kv_seqlen - query.shape[2]
    shape = (*query.shape[:-1], key.shape[2])  # (B, H, L, S)

    masks, bias = [], None
    if is_causal:
        masks.append(causal)
    if left_window_size >= 0 or right_window_size >= 0:
        masks.append(window(left_window_size, right_window_size, is_causal))
    if nonpad_kv_seqlen is not None:
        masks.append(padding(nonpad_kv_seqlen))
    table = None
    if attn_mask is not None:
        table, bias = split_mask(attn_mask, shape)
        masks.append(look_up(table, start))
    mask = None
    if masks:
        # One table alone goes in as a tensor, the rest as mods.
        mask = table if table is not None and len(masks) == 1 else and_masks(*masks)
    how = {"mask": mask, "score_mod": score_mods(softcap, bias, start), "scale": scale}
    if callable(how["mask"]) or how["score_mod"] is not None:
        how |= {"query_offset": start, "key_offset": 0}

    out = attention(query, key, value, **how).to(dtype)
    out = out.transpose(1, 2).flatten(2) if packed else out
    shown = show(query, key, value, how, softcap, start, qk_matmul_output_mode)
    return out, *present, shown.to(dtype)


def split_heads(x, n_heads):
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)  # (B, H, L, D)


def window(left, right, is_causal):
    """A mask mod: as many keys before and after the query's own; -1 is any number of them."""
    if is_causal and right < 0:
        return sliding_window(left + 1)  # ours counts the query's own key

    def window_mask(b, h, q_idx, kv_idx):
        before, after = q_idx - kv_idx, kv_idx - q_idx
        return (before <= (left if left >= 0 else math.inf)) & (
            after <= (right if right >= 0 else math.inf)
        )

    return window_mask


def split_mask(attn_mask, shape):
    """What an attn_mask hides, (B, H, L, S) Boolean, and what it adds to the scores, or None."""
    missing = shape[-1] - attn_mask.shape[-1]
    fill = False if attn_mask.dtype == torch.bool else -math.inf
    full = torch.nn.functional.pad(attn_mask, (0, missing), value=fill).expand(shape)
    if full.dtype == torch.bool:
        return full, None
    visible = full > -math.inf
    return visible, full.float().masked_fill(~visible, 0)


def look_up(table, start):
    """The mask mod that a table is: rows are counted from the first query."""

    def table_mask(b, h, q_idx, kv_idx):
        return table[b, h, q_idx - first(start, b), kv_idx]

    return table_mask


def first(start, b):
    return start[b] if isinstance(start, Tensor) else start


def score_mods(cap, bias, start):
    """ONNX's order: the cap, then what the mask adds."""
    if not cap and bias is None:
        return None
    capped = softcap(cap) if cap else None

    def score_mod(score, b, h, q_idx, kv_idx):
        if capped is not None:
            score = capped(score, b, h, q_idx, kv_idx)
        if bias is not None:
            score = score + bias[b, h, q_idx - first(start, b), kv_idx]
        return score

    return score_mod


def show(query, key, value, how, cap, start, mode):
    """What ONNX calls qk_matmul_output: 0 scaled, 1 capped, 2 masked, 3 the weights."""
    if mode == 0:
        return attention_scores(query, key, scale=how["scale"])
    if mode == 3:
        return attention_weights(query, key, **how)
    if mode == 1:
        mod = score_mods(cap, None, start)
        how = {"score_mod": mod, "scale": how["scale"]}
        how |= {"query_offset": start, "key_offset": 0} if mod else {}
    # Scores are the logarithms of the weights, moved by the log-sum-exp.
    _, lse = attention(query, key, value, **how, return_lse=True)
    return attention_weights(query, key, **how).log() + lse[..., None]


# --- RotaryEmbedding ------------------------------------------------------------


def rotary_node(
    x, cos, sin, position_ids=None, *, interleaved=0, num_heads=0, rotary_embedding_dim=0
):
    """RotaryEmbedding: the width of the caches says how many numbers turn."""
    packed = x.dim() == 3
    x = split_heads(x, num_heads) if packed else x
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]  # (B, L, R / 2)
    if rotary_embedding_dim and cos.shape[-1] != rotary_embedding_dim // 2:
        raise NotImplementedError("a cache of another width than rotary_embedding_dim")
    pairing = "interleaved" if interleaved else "half"
    out = rotate(x, cos[:, None], sin[:, None], pairing=pairing)
    return (out.transpose(1, 2).flatten(2) if packed else out,)


# --- FlexAttention --------------------------------------------------------------


def flex_node(query, key, value, *, scale=None, score_mod=None, prob_mod=None):
    """FlexAttention: ONNX's mods are graphs over all the scores at once; ours see a pair."""
    if prob_mod is not None:
        raise NotImplementedError("prob_mod changes the weights after the softmax")
    how = {}
    if score_mod is not None:
        if score_mod.name not in GRAPHS:
            raise NotImplementedError(f"the graph {score_mod.name}")
        constants = {x.name: onnx.numpy_helper.to_array(x) for x in score_mod.initializer}
        how = GRAPHS[score_mod.name](constants)
    return (attention(query, key, value, scale=scale, **how),)


def add(constants):
    bias = float(constants["bias"])
    return {"score_mod": lambda score, b, h, q_idx, kv_idx: score + bias}


def relative(constants):
    return {"score_mod": lambda score, b, h, q_idx, kv_idx: score + (q_idx - kv_idx)}


GRAPHS = {
    "score_mod_bias": add,
    "score_mod_causal_mask": lambda constants: {"mask": causal},
    "score_mod_soft_cap": lambda constants: {"score_mod": softcap(float(constants["cap"]))},
    "score_mod_relative_positional": relative,
}
OPERATORS = {
    "Attention": attention_node,
    "RotaryEmbedding": rotary_node,
    "FlexAttention": flex_node,
}

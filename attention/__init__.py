"""Attention, exact and small: the package that the book calls into.

Read these first, in this order: functional (the formula), masks, softmax,
modules/multihead, kernels/tiled. Beside them: masking, in which a mask is
resolved and a mod evaluated, and kernels/blocks, in which tiles are planned.
"""

from attention.backward import attention_backward
from attention.biases import (
    T5Bias,
    alibi,
    alibi_slopes,
    softcap,
    t5_buckets,
)
from attention.diagnosis.diagnose import diagnose
from attention.functional import (
    attention,
    attention_scores,
    attention_weights,
)
from attention.kernels.split_keys import split_keys
from attention.masks import (
    causal,
    document,
    first_tokens,
    padding,
    prefix_lm,
    shift,
    sliding_window,
)
from attention.modules.additive import AdditiveAttention
from attention.modules.multihead import MultiHeadAttention
from attention.modules.self_attention import CausalSelfAttention, SelfAttention
from attention.pictures.plots import heatmap, vectors, weighted_sum
from attention.positions.absolute import LearnedPositions, sinusoidal
from attention.positions.rotary import (
    RotaryEmbedding,
    pairing_permutation,
    rotate,
)
from attention.positions.scaling import (
    rope_scaling_linear,
    rope_scaling_llama3,
    rope_scaling_ntk,
    rope_scaling_yarn,
)
from attention.softmax import (
    logsumexp,
    merge,
    online_softmax,
    softmax,
    softmax_naive,
)
from attention.tasks.recall import recall_batch, train_recall

__all__ = [
    "AdditiveAttention",
    "CausalSelfAttention",
    "LearnedPositions",
    "MultiHeadAttention",
    "RotaryEmbedding",
    "SelfAttention",
    "T5Bias",
    "alibi",
    "alibi_slopes",
    "attention",
    "attention_backward",
    "attention_scores",
    "attention_weights",
    "causal",
    "diagnose",
    "document",
    "first_tokens",
    "heatmap",
    "logsumexp",
    "merge",
    "online_softmax",
    "padding",
    "pairing_permutation",
    "prefix_lm",
    "recall_batch",
    "rope_scaling_linear",
    "rope_scaling_llama3",
    "rope_scaling_ntk",
    "rope_scaling_yarn",
    "rotate",
    "shift",
    "sinusoidal",
    "sliding_window",
    "softcap",
    "softmax",
    "softmax_naive",
    "split_keys",
    "t5_buckets",
    "train_recall",
    "vectors",
    "weighted_sum",
]

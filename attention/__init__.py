"""Attention, exact and small: the package that the book calls into."""

from attention.additive import AdditiveAttention
from attention.backward import attention_backward
from attention.dot_product import (
    attention,
    attention_scores,
    attention_weights,
)
from attention.masks import causal, padding
from attention.multihead import MultiHeadAttention
from attention.plot import heatmap, vectors, weighted_sum
from attention.recall import recall_batch, train_recall
from attention.self_attention import CausalSelfAttention, SelfAttention
from attention.softmax import logsumexp, softmax, softmax_naive

__all__ = [
    "AdditiveAttention",
    "CausalSelfAttention",
    "MultiHeadAttention",
    "SelfAttention",
    "attention",
    "attention_backward",
    "attention_scores",
    "attention_weights",
    "causal",
    "heatmap",
    "logsumexp",
    "padding",
    "recall_batch",
    "softmax",
    "softmax_naive",
    "train_recall",
    "vectors",
    "weighted_sum",
]

"""Attention, exact and small: the package that the book calls into."""

from attention.dot_product import (
    attention,
    attention_scores,
    attention_weights,
)
from attention.plot import heatmap, vectors, weighted_sum
from attention.softmax import logsumexp, softmax, softmax_naive

__all__ = [
    "attention",
    "attention_scores",
    "attention_weights",
    "heatmap",
    "logsumexp",
    "softmax",
    "softmax_naive",
    "vectors",
    "weighted_sum",
]

"""The annotations are true: valid input passes under jaxtyping's import hook, with beartype.

In a process of its own, because the hook rewrites what it imports and raises before the
functions' own checks, which the other tests are about.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import attention

PACKAGE = Path(attention.__file__).parent

HOOK = """
import jaxtyping
jaxtyping.install_import_hook("attention", "beartype.beartype")
import torch
from attention import *
"""

VALID = """
from torch.nn.attention.flex_attention import BlockMask

B, H_KV, H, L, S, D, DV = 2, 3, 6, 5, 7, 11, 13

def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx

def distance(score, b, h, q_idx, kv_idx):
    return score - (q_idx - kv_idx).abs()

q, k, v = torch.randn(B, H, L, D), torch.randn(B, H_KV, S, D), torch.randn(B, H_KV, S, DV)
mask = torch.rand(L, S) < 0.5
one = torch.ones(1, 1, 1, dtype=torch.int32)
block_mask = BlockMask.from_kv_blocks(one, one[None] - 1, mask_mod=causal, seq_lengths=(L, S))
offsets = dict(query_offset=torch.tensor([2, 3]), key_offset=0)
for how in (
    {},
    dict(scale=1),
    dict(scale=0.5, mask=mask),
    dict(mask=mask.expand(B, 1, L, S)),
    dict(mask=causal, **offsets),
    dict(mask=block_mask, score_mod=distance, query_offset=2, key_offset=0),
):
    attention_weights(q, k, **how)
    attention(q, k, v, kernel="reference", **how)
    out, lse = attention(q, k, v, return_lse=True, **how)
    assert (out.shape, lse.shape) == ((B, H, L, DV), (B, H, L))
q, k, v = q[0, 0], k[0, 0], v[0, 0]
attention_scores(q, k)
attention_scores(q, k, scale=2)
attention_weights(q, k, mask=mask)
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    attention(q.to(dtype), k.to(dtype), v.to(dtype), mask=mask, return_lse=True)
    for f in (softmax, softmax_naive, logsumexp):
        f(q.to(dtype))
        f(q.to(dtype), dim=0)
attention(q[:0], k, v)
attention(q, k[:0], v[:0])
softmax(torch.zeros(3))

names = [str(n) for n in range(S)]
heatmap(attention_weights(q, k), names[:L], names, title="t", digits=1)
heatmap(mask, names[:L], names, digits=0)
heatmap(mask.long(), tuple(names[:L]), names)
vectors(k, names, axes=(1, 2))
weighted_sum(torch.full((S,), 1 / S), v, names, result_label="mean")._repr_svg_()
"""

# The functions refuse these too; under the hook their annotations do, and come first.
BAD = """
def refuses(f, *args, **kwargs):
    try:
        f(*args, **kwargs)
    except jaxtyping.TypeCheckError:
        return
    raise AssertionError(f"{f.__name__} took {kwargs}")

x = torch.zeros(5, 3)
refuses(attention_scores, x, torch.zeros(7, 4))
refuses(attention, x, torch.zeros(7, 3), torch.zeros(6, 3))
refuses(attention, x, x, x, scale="1")
refuses(attention, x, x, x, mask=torch.zeros(5, 5))
refuses(softmax, torch.zeros(3, dtype=torch.int64))
refuses(heatmap, torch.zeros(3), ["a"], ["b"])
"""


def run(code, folder):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", HOOK + code],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_valid_input_passes_and_bad_input_fails_under_the_hook():
    done = run(VALID + BAD, PACKAGE.parent)
    assert done.returncode == 0, done.stderr


def test_a_wrong_annotation_fails_on_valid_input(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "attention", ignore=shutil.ignore_patterns("*.pyc"))
    module = tmp_path / "attention/dot_product.py"
    right = module.read_text("utf-8")
    wrong = right.replace(
        'value: Float[Tensor, "*kv_batch S Dv"]', 'value: Float[Tensor, "*kv_batch S D"]'
    )
    assert wrong != right
    module.write_text(wrong, "utf-8")
    done = run(VALID, tmp_path)
    assert done.returncode != 0
    assert "TypeCheckError" in done.stderr

"""The annotations are true: valid input passes under jaxtyping's import hook, with beartype.

In a process of its own, because the hook rewrites what it imports and raises before the
functions' own checks, which the other tests are about.
"""

import re
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
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_mask

B, H_KV, H, L, S, D, DV = 2, 3, 6, 5, 7, 11, 13

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
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    online_softmax(q.to(dtype), block_size=2)
    for lses in (torch.zeros(3, 2), torch.zeros(3, 2, dtype=dtype)):
        assert merge(torch.zeros(3, 2, DV, dtype=dtype), lses)[1].shape == (2,)
assert merge(torch.zeros(3, DV), torch.zeros(3))[0].shape == (DV,)
assert split_keys(q, k, v, 2).shape == (L, DV)
four = torch.randn(B, 6, L, D), torch.randn(B, 3, S, D), torch.randn(B, 3, S, DV)
for how in ({}, dict(scale=2, kernel="tiled"), dict(mask=mask), dict(mask=causal, **offsets)):
    assert split_keys(*four, n_parts=2, **how).shape == (B, 6, L, DV)

D_MODEL, HEAD_DIM = 6, 5
for dtype in (torch.bfloat16, torch.float64):
    x, y = torch.randn(B, L, D_MODEL, dtype=dtype), torch.randn(B, S, D_MODEL, dtype=dtype)
    for layer in (
        SelfAttention(D_MODEL, HEAD_DIM, bias=True),
        CausalSelfAttention(d_model=D_MODEL, head_dim=HEAD_DIM),
    ):
        layer.to(dtype)
        assert layer(x).shape == (B, L, HEAD_DIM)
        assert layer(x[0]).shape == (L, HEAD_DIM)
    for layer in (
        MultiHeadAttention(D_MODEL, 6, n_kv_heads=3, bias=True, dropout=0.5),
        MultiHeadAttention(d_model=D_MODEL, n_heads=2, dropout=0),
        MultiHeadAttention(D_MODEL, 6, n_kv_heads=None).eval(),
    ):
        layer.to(dtype)
        H = layer.n_heads
        for how in (
            {},
            dict(mask=mask),
            dict(mask=mask.expand(B, H, L, S)),
            dict(mask=causal, score_mod=distance, query_offset=torch.tensor([2, 3]), key_offset=0),
            dict(mask=padding(torch.tensor([3, 0])), query_offset=0, key_offset=0),
            dict(mask=block_mask, query_offset=2, key_offset=0),
        ):
            assert layer(x, y, **how).shape == (B, L, D_MODEL)
            assert layer(x, y, y + 1, **how).shape == (B, L, D_MODEL)
        assert layer(x).shape == (B, L, D_MODEL)
        assert layer(x[0], y[0], None, mask=mask).shape == (L, D_MODEL)
        assert layer(x[:, :0]).shape == (B, 0, D_MODEL)
        assert layer(x, y[:, :0]).shape == (B, L, D_MODEL)
    layer = AdditiveAttention(d_query=D_MODEL, d_key=D, d_hidden=3).to(dtype)
    keys, values = torch.randn(B, S, D, dtype=dtype), torch.randn(B, S, DV, dtype=dtype)
    for how in ({}, dict(mask=mask), dict(mask=causal, **offsets), dict(mask=mask[None, None])):
        assert layer(x, keys, values, **how).shape == (B, L, DV)
        assert layer.weights(x, keys, **how).shape == (B, L, S)
    assert layer(x[0], keys[0], values[0], mask=mask).shape == (L, DV)
    assert layer.weights(x[0], keys[0]).shape == (L, S)
    q = torch.randn(B, 6, L, D, dtype=dtype)
    k, v = torch.randn(B, H_KV, S, D, dtype=dtype), torch.randn(B, H_KV, S, DV, dtype=dtype)
    grad = torch.randn(B, 6, L, DV, dtype=dtype)
    for how in ({}, dict(scale=1), dict(scale=0.5, mask=mask), dict(mask=causal, **offsets)):
        shapes = [x.shape for x in attention_backward(q, k, v, grad, **how)]
        assert shapes == [q.shape, k.shape, v.shape]
    q, k, v, grad = (x[0, 0] for x in (q, k, v, grad))
    attention_backward(q, k, v, grad, mask=mask)

for dtype in (torch.int32, torch.int64):
    b, h, i, j = (torch.arange(n, dtype=dtype) for n in (B, 6, L, S))
    lengths = torch.tensor([3, 0], dtype=dtype)
    assert causal(b[0], h[0], i[0], j[0]).shape == ()
    grid = [x.view([-1 if n == dim else 1 for n in range(4)]) for dim, x in enumerate((b, h, i, j))]
    assert causal(*grid).shape == (1, 1, L, S)
    assert padding(lengths)(*grid).shape == (B, 1, 1, S)
    create_mask(and_masks(causal, padding(lengths)), B, 6, L, S, device="cpu")
    ids = torch.tensor([[0, 0, 1], [1, 1, 1]], dtype=dtype)
    starts = torch.tensor([1, 2], dtype=dtype)
    for mod in (
        sliding_window(size=3), first_tokens(n=0), prefix_lm(2), document(ids), document(ids[0]),
        shift(causal, q=2, kv=starts), shift(prefix_lm(1), starts, -1),
    ):
        assert mod(b[0], h[0], i[0], j[0]).shape == ()
        assert mod(*grid)[..., 0, 0].numel() in (1, B)
        create_mask(and_masks(mod, mod), B, 6, L, S, device="cpu")

    where = torch.tensor([[0, 5, -3]], dtype=dtype)
    assert sinusoidal(where, d_model=4, base=100).shape == (1, 3, 4)
    assert t5_buckets(where, n_buckets=4, max_distance=9, bidirectional=False).shape == (1, 3)
    for bias in (T5Bias(n_heads=6, n_buckets=8, max_distance=20), alibi(6), softcap(cap=5)):
        assert bias(torch.zeros(B, 6, L, S), *grid).shape == (B, 6, L, S)
        assert bias(torch.zeros(()), b[0], h[0], i[0], j[0]).shape == ()
assert sinusoidal(torch.tensor(2.5), 6).shape == (6,)
assert alibi_slopes(12).shape == (12,)

for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    x = torch.randn(B, H, L, D + 1, dtype=dtype)
    starts = torch.tensor([7, 0])
    for pairing in ("interleaved", "half"):
        for how in (
            {},
            dict(base=500, rotary_dim=8),
            dict(scaling=rope_scaling_linear(2)),
            dict(scaling=rope_scaling_ntk(factor=2.5)),
            dict(scaling=rope_scaling_yarn(4, 64, beta_fast=20, beta_slow=2, attention_factor=1)),
            dict(scaling=rope_scaling_llama3(8, 64, low_freq_factor=1, high_freq_factor=4)),
        ):
            turn = RotaryEmbedding(D + 1, pairing=pairing, **how)
            assert turn(x).shape == turn(x, offset=starts).shape == x.shape
            assert turn(x[0, 0], offset=3).shape == x[0, 0].shape
        layer = MultiHeadAttention(24, 2, rotary=RotaryEmbedding(12, pairing=pairing)).to(dtype)
        tokens = torch.randn(B, L, 24, dtype=dtype)
        assert layer(tokens, query_offset=starts, key_offset=starts).shape == tokens.shape
        assert layer(tokens[0], mask=causal, score_mod=T5Bias(2)).shape == tokens[0].shape
    table = LearnedPositions(n_positions=16, d_model=24).to(dtype)
    assert table(tokens, offset=starts).shape == tokens.shape
    assert table(tokens[0], offset=2).shape == tokens[0].shape
    cos, sin = torch.ones(L, 3), torch.zeros(L, 3)
    assert rotate(x, cos, sin, pairing="half").shape == x.shape
    assert rotate(x, cos.expand(B, 1, L, 3), sin.expand(B, 1, L, 3), pairing="half").dtype == dtype
assert pairing_permutation(8, rotary_dim=6).shape == (8,)

assert diagnose(lambda query, key, value: softmax(query @ key.mT) @ value, scale=1).agrees
tokens, answers = recall_batch(n=2, n_pairs=3, n_keys=5, n_values=7)
assert (tokens.shape, answers.shape) == ((2, 7), (2,))
recall_batch(2, generator=torch.Generator().manual_seed(0))
train_recall(lambda: MultiHeadAttention(8, 2), steps=1, n_layers=1, d_model=8, seed=1)

k = torch.randn(S, D)
q, v = torch.randn(L, D), torch.randn(S, DV)
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
    raise AssertionError(f"{f} took {args} {kwargs}")

x = torch.zeros(5, 3)
refuses(attention_scores, x, torch.zeros(7, 4))
refuses(attention, x, torch.zeros(7, 3), torch.zeros(6, 3))
refuses(attention, x, x, x, scale="1")
refuses(attention, x, x, x, mask=torch.zeros(5, 5))
refuses(softmax, torch.zeros(3, dtype=torch.int64))
refuses(heatmap, torch.zeros(3), ["a"], ["b"])
refuses(causal, *torch.zeros(4))
refuses(causal, *torch.zeros(3, dtype=torch.int64), 0)
refuses(padding, torch.zeros(2))
refuses(padding, torch.zeros(2, 2, dtype=torch.int64))
refuses(SelfAttention(3, 2), torch.zeros(3, dtype=torch.int64))
refuses(SelfAttention(3, 2), torch.zeros(3))
refuses(SelfAttention, 3.0, 2)
refuses(MultiHeadAttention, 6, 2, dropout="0.1")
refuses(MultiHeadAttention(3, 1), x, x[:, :2])
refuses(MultiHeadAttention(3, 1), x, x[:4], x[:3])
refuses(AdditiveAttention(3, 3, 2), x, x, x[:4])
refuses(AdditiveAttention(3, 3, 2).weights, x[None], x)
refuses(attention_backward, x, x, x, x[:4])
refuses(attention_backward, x, x, x, x, scale="1")
refuses(recall_batch, 2.0)
refuses(train_recall, None)
"""


# The same valid input, given to the package in another folder, where an annotation is wrong.
WRONG = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "attention"]:
    del sys.modules[name]
sys.path.insert(0, sys.argv[1])
from attention import *
assert sys.modules["attention"].__file__.startswith(sys.argv[1])
try:
    exec(VALID)
except jaxtyping.TypeCheckError as error:
    print(str(error).partition("\\n")[0])
"""


def test_valid_input_passes_and_bad_input_and_a_wrong_annotation_fail_under_the_hook(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "attention", ignore=shutil.ignore_patterns("*.pyc"))
    module = tmp_path / "attention/functional.py"
    right = module.read_text("utf-8")
    wrong = right.replace(
        'value: Float[Tensor, "*kv_batch S Dv"]', 'value: Float[Tensor, "*kv_batch S D"]'
    )
    assert wrong != right
    module.write_text(wrong, "utf-8")
    code = f"{HOOK}\nVALID = {VALID!r}\nexec(VALID)\n{BAD}\n{WRONG}"
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "checking the parameters of attention.functional.attention" in done.stdout


def test_every_public_name_is_given_valid_input():
    assert [name for name in attention.__all__ if not re.search(rf"\b{name}\b", VALID)] == []

"""The layers that published models are run with: transformers, built here from their configs.

Nothing is fetched. A model's config is written out below with the values that it was published
with; only widths that do not matter, such as the number of heads, are smaller. The modules of
transformers are imported by the tests that use them.
"""

import importlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch.nn.attention.flex_attention import and_masks, create_mask, or_masks

from attention import (
    MultiHeadAttention,
    RotaryEmbedding,
    T5Bias,
    alibi,
    alibi_slopes,
    attention,
    causal,
    document,
    padding,
    pairing_permutation,
    prefix_lm,
    rope_scaling_linear,
    rope_scaling_llama3,
    rope_scaling_ntk,
    rope_scaling_yarn,
    shift,
    sliding_window,
    softcap,
    t5_buckets,
)

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

B, H, L = 2, 3, 11
INF = math.inf


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def modeling(family):
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


# --- rotary tables and rotations ------------------------------------------------


def standard(module, q, k, cos, sin, R):
    return module.apply_rotary_pos_emb(q, k, cos, sin)


def of_a_slice(module, q, k, cos, sin, R):
    """Phi and StableLM cut the numbers that turn in the layer, not in the function."""
    turned = module.apply_rotary_pos_emb(q[..., :R], k[..., :R], cos, sin)
    return tuple(torch.cat([t, x[..., R:]], -1) for t, x in zip(turned, (q, k), strict=True))


def deepseek_v3(module, q, k, cos, sin, R):
    return module.apply_rotary_pos_emb_interleave(q, k, cos, sin)


def deepseek_v2(module, q, k, cos, sin, R):
    return module.apply_rotary_emb(q, k, torch.complex(cos, sin))


@dataclass
class Model:
    """A published config, and the same in our words."""

    family: str
    config: str
    published: dict
    head_dim: int
    pairing: str
    base: float
    rotary_dim: int | None = None
    scaling: Callable | None = None
    rotation: Callable = standard
    comes_out: Callable = field(default=lambda R: slice(None))  # the order of what they return

    def theirs(self):
        module = modeling(self.family)
        # Two heads, and the width of a head as published.
        size = {"hidden_size": 2 * self.head_dim, "num_attention_heads": 2}
        config = getattr(module, self.config)(**size, **self.published)
        name = self.config.removesuffix("Config")
        return module, getattr(module, f"{name}RotaryEmbedding")(config)

    def ours(self):
        how = {"pairing": self.pairing, "base": self.base, "rotary_dim": self.rotary_dim}
        return RotaryEmbedding(self.head_dim, scaling=self.scaling, **how)


DEEPSEEK = {
    "qk_rope_head_dim": 64,
    "rope_theta": 10000,
    "max_position_embeddings": 163840,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
    },
}


def deepseek(mscale):
    scaling = DEEPSEEK["rope_scaling"] | {"mscale": mscale, "mscale_all_dim": mscale}
    return DEEPSEEK | {"rope_scaling": scaling}


MODELS = {
    "Llama 2 7B": Model("llama", "LlamaConfig", {"rope_theta": 10000.0}, 128, "half", 10000.0),
    "Code Llama 7B": Model("llama", "LlamaConfig", {"rope_theta": 1e6}, 128, "half", 1e6),
    "Vicuna 7B v1.5 16k": Model(
        "llama",
        "LlamaConfig",
        {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}},
        128,
        "half",
        10000.0,
        scaling=rope_scaling_linear(4.0),
    ),
    "Llama 3.1 8B": Model(
        "llama",
        "LlamaConfig",
        {
            "rope_theta": 500000.0,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        128,
        "half",
        500000.0,
        scaling=rope_scaling_llama3(8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "Llama 3.2 1B": Model(
        "llama",
        "LlamaConfig",
        {
            "rope_theta": 500000.0,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        64,
        "half",
        500000.0,
        scaling=rope_scaling_llama3(32.0, 8192),
    ),
    "Qwen2.5 7B with YaRN": Model(
        "qwen2",
        "Qwen2Config",
        {
            "rope_theta": 1000000.0,
            "max_position_embeddings": 32768,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        },
        128,
        "half",
        1000000.0,
        scaling=rope_scaling_yarn(4.0, 32768),
    ),
    "Mistral 7B v0.1": Model(
        "mistral", "MistralConfig", {"rope_theta": 10000.0}, 128, "half", 10000.0
    ),
    "GPT-NeoX 20B": Model(
        "gpt_neox",
        "GPTNeoXConfig",
        {"rotary_pct": 0.25, "rotary_emb_base": 10000},
        96,
        "half",
        10000,
        rotary_dim=24,
    ),
    "Pythia 1B": Model(
        "gpt_neox",
        "GPTNeoXConfig",
        {"rotary_pct": 0.25, "rotary_emb_base": 10000},
        256,
        "half",
        10000,
        rotary_dim=64,
    ),
    "Phi-2": Model(
        "phi",
        "PhiConfig",
        {"partial_rotary_factor": 0.4, "rope_theta": 10000.0},
        80,
        "half",
        10000.0,
        rotary_dim=32,
        rotation=of_a_slice,
    ),
    "StableLM 2 1.6B": Model(
        "stablelm",
        "StableLmConfig",
        {"partial_rotary_factor": 0.25, "rope_theta": 10000},
        64,
        "half",
        10000,
        rotary_dim=16,
        rotation=of_a_slice,
    ),
    "Gemma 2 9B": Model(
        "gemma2",
        "Gemma2Config",
        {"head_dim": 256, "rope_theta": 10000.0},
        256,
        "half",
        10000.0,
    ),
    "Command R": Model(
        "cohere", "CohereConfig", {"rope_theta": 8000000.0}, 128, "interleaved", 8000000.0
    ),
    "ERNIE 4.5": Model(
        "ernie4_5",
        "Ernie4_5Config",
        {"head_dim": 128, "rope_theta": 500000.0},
        128,
        "interleaved",
        500000.0,
    ),
    "GLM-4 9B": Model(
        "glm",
        "GlmConfig",
        {"head_dim": 128, "partial_rotary_factor": 0.5, "rope_theta": 10000.0},
        128,
        "interleaved",
        10000.0,
        rotary_dim=64,
    ),
    # mscale and mscale_all_dim, being equal, leave the cosines as they are; the layer has its
    # scale of the scores for that. What turns are 64 numbers beside those of the head.
    "DeepSeek-V2": Model(
        "deepseek_v2",
        "DeepseekV2Config",
        deepseek(0.707),
        64,
        "interleaved",
        10000,
        scaling=rope_scaling_yarn(40, 4096, beta_fast=32, beta_slow=1, attention_factor=1.0),
        rotation=deepseek_v2,
    ),
    # Neighbours are paired, but come out as halves: queries and keys alike, so scores agree.
    "DeepSeek-V3": Model(
        "deepseek_v3",
        "DeepseekV3Config",
        deepseek(1.0),
        64,
        "interleaved",
        10000,
        scaling=rope_scaling_yarn(40, 4096, beta_fast=32, beta_slow=1, attention_factor=1.0),
        rotation=deepseek_v3,
        comes_out=pairing_permutation,
    ),
    "gpt-oss": Model(
        "gpt_oss",
        "GptOssConfig",
        {
            "head_dim": 64,
            "rope_theta": 150000,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
            },
        },
        64,
        "half",
        150000,
        scaling=rope_scaling_yarn(32.0, 4096, truncate=False),
    ),
}
EVERY = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
STARTS = pytest.mark.parametrize("start", [0, 4000])


def tables(rope, start):
    """Their cosines and sines (1, L, ...) for L positions, however a module keeps them."""
    where = torch.arange(start, start + L)[None]
    made = rope(torch.zeros(1, 1), where)
    return (made.real, made.imag) if isinstance(made, torch.Tensor) else made


def one_a_pair(table, pairs):
    """A table of transformers with each number once: (L, R / 2)."""
    table = table[0]
    if table.shape[-1] == pairs:
        return table
    twice = table.unflatten(-1, (2, pairs))
    if torch.equal(twice[:, 0], twice[:, 1]):
        return twice[:, 0]
    twice = table.unflatten(-1, (pairs, 2))
    assert torch.equal(twice[..., 0], twice[..., 1])
    return twice[..., 0]


def blur(start):
    """How far float32 angles may be off: the last position times a few units of rounding.

    transformers keeps frequencies and angles in float32, and we in float64. A frequency is at
    most 1, so an angle is at most the position.
    """
    return (start + L) * 2**-22 + 1e-6


@EVERY
def test_frequencies_and_attention_factor_are_those_of(model):
    _, rope = model.theirs()
    ours = model.ours()
    assert rope.inv_freq.shape == ours.frequencies.shape
    torch.testing.assert_close(rope.inv_freq.double(), ours.frequencies, rtol=1e-6, atol=0)
    assert math.isclose(rope.attention_scaling, ours.attention_factor, rel_tol=1e-12)


@EVERY
@STARTS
def test_cosines_and_sines_are_those_of(model, start):
    _, rope = model.theirs()
    ours = model.ours()
    pairs = len(ours.frequencies)
    expected = [one_a_pair(table, pairs) for table in tables(rope, start)]
    # A pair (1, 0) is turned to (cos, sin).
    ones = torch.zeros(L, model.head_dim, dtype=torch.float64)
    first = slice(0, pairs) if model.pairing == "half" else slice(0, 2 * pairs, 2)
    second = slice(pairs, 2 * pairs) if model.pairing == "half" else slice(1, 2 * pairs, 2)
    ones[:, first] = 1
    turned = ours(ones, offset=start)
    for part, table in zip((first, second), expected, strict=True):
        torch.testing.assert_close(turned[:, part], table.double(), rtol=0, atol=2 * blur(start))


@EVERY
@STARTS
def test_queries_and_keys_are_turned_as_by(model, start):
    module, rope = model.theirs()
    ours = model.ours()
    q, k = (torch.randn(B, H, L, model.head_dim) for _ in "qk")
    R = 2 * len(ours.frequencies)
    expected = model.rotation(module, q, k, *tables(rope, start), R)
    order = model.comes_out(R)
    for x, theirs in zip((q, k), expected, strict=True):
        atol = 8 * blur(start)  # of numbers up to 4, two in a sum
        torch.testing.assert_close(ours(x, offset=start)[..., order], theirs, rtol=0, atol=atol)
        # Positions near 4000 turn the first pair by a thousand radians: no agreement by chance.
        assert not torch.allclose(ours(x, offset=start + 1)[..., order], theirs, atol=0.1)


@EVERY
def test_the_other_pairing_would_be_noticed(model):
    module, rope = model.theirs()
    ours = model.ours()
    q = torch.randn(B, H, L, model.head_dim)
    R = 2 * len(ours.frequencies)
    expected, _ = model.rotation(module, q, q, *tables(rope, 0), R)
    ours.pairing = "half" if model.pairing == "interleaved" else "interleaved"
    assert not torch.allclose(ours(q)[..., model.comes_out(R)], expected, atol=0.1)


@STARTS
def test_gpt_j_turns_64_of_256_numbers_by_neighbours(start):
    module = modeling("gptj")
    table = module.create_sinusoidal_positions(start + L, 64)[None, start:]
    sin, cos = table.chunk(2, dim=-1)
    q = torch.randn(B, H, L, 256)
    turned = module.apply_rotary_pos_emb(q[..., :64].transpose(1, 2), sin, cos).transpose(1, 2)
    expected = torch.cat([turned, q[..., 64:]], -1)
    ours = RotaryEmbedding(256, pairing="interleaved", rotary_dim=64)
    torch.testing.assert_close(ours(q, offset=start), expected, rtol=0, atol=8 * blur(start))


@pytest.mark.parametrize("length", [2048, 2049, 3000, 5000, 16384])
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
def test_dynamic_is_our_ntk_rule_with_a_factor_that_grows_with_the_text(length, factor):
    # transformers puts base a^(R / (R - 2)) for base, a = factor length / trained - (factor - 1).
    # Pair i then turns by base^(-2i / R) a^(-2i / (R - 2)): a^(i / (R / 2 - 1)) times slower,
    # which is rope_scaling_ntk(a). At the trained length a is 1.
    trained, R = 2048, 128
    module = modeling("llama")
    config = module.LlamaConfig(
        hidden_size=2 * R,
        num_attention_heads=2,
        rope_theta=10000.0,
        max_position_embeddings=trained,
        rope_scaling={"type": "dynamic", "factor": factor},
    )
    rope = module.LlamaRotaryEmbedding(config)
    rope(torch.zeros(1, 1), torch.arange(length)[None])
    grown = factor * length / trained - (factor - 1)
    ours = RotaryEmbedding(R, pairing="half", base=10000.0, scaling=rope_scaling_ntk(grown))
    torch.testing.assert_close(rope.inv_freq.double(), ours.frequencies, rtol=5e-6, atol=0)
    assert rope.attention_scaling == ours.attention_factor == 1.0


# --- whole layers -----------------------------------------------------------------


def additive(allowed):
    """Their mask: 0 where a query may attend, else the smallest float32."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


def copy(linear, weight, bias=None):
    """Give a layer of ours their weights; where they have no bias it is 0."""
    linear.weight.data.copy_(weight)
    if linear.bias is not None:
        linear.bias.data.copy_(torch.zeros_like(linear.bias) if bias is None else bias)


def separate(ours, layer):
    """Four projections, under the names that Llama gave them."""
    out = layer.o_proj if hasattr(layer, "o_proj") else layer.dense
    theirs = (layer.q_proj, layer.k_proj, layer.v_proj, out)
    for linear, other in zip((ours.query, ours.key, ours.value, ours.out), theirs, strict=True):
        copy(linear, other.weight, other.bias)


def fused(ours, layer):
    """GPT-NeoX and Bloom: for each head its query, its key and its value, in one matrix."""
    n_heads = ours.n_heads
    weights = layer.query_key_value.weight.unflatten(0, (n_heads, 3, -1))
    biases = layer.query_key_value.bias.unflatten(0, (n_heads, 3, -1))
    for i, linear in enumerate((ours.query, ours.key, ours.value)):
        copy(linear, weights[:, i].flatten(0, 1), biases[:, i].flatten())
    copy(ours.out, layer.dense.weight, layer.dense.bias)


LLAMA3 = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
YARN = {
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
}
D_MODEL, N_HEADS, HEAD_DIM = 96, 6, 16
# family, the prefix of its classes, its config, heads of keys, our rotary embedding, weights
LAYERS = {
    "Llama 3.1": (
        ("llama", "Llama", LLAMA3, 2),
        {"pairing": "half", "base": 500000.0, "scaling": rope_scaling_llama3(8.0, 8192)},
        separate,
    ),
    "Qwen2.5 with YaRN": (
        ("qwen2", "Qwen2", YARN, 3),
        {"pairing": "half", "base": 1000000.0, "scaling": rope_scaling_yarn(4.0, 32768)},
        separate,
    ),
    "Command R": (
        ("cohere", "Cohere", {"rope_theta": 8000000.0}, 1),
        {"pairing": "interleaved", "base": 8000000.0},
        separate,
    ),
    "GLM-4": (
        ("glm", "Glm", {"head_dim": HEAD_DIM, "partial_rotary_factor": 0.5}, 2),
        {"pairing": "interleaved", "rotary_dim": 8},
        separate,
    ),
    "Phi-2": (
        ("phi", "Phi", {"partial_rotary_factor": 0.5}, 6),
        {"pairing": "half", "rotary_dim": 8},
        separate,
    ),
    "Pythia": (
        ("gpt_neox", "GPTNeoX", {"rotary_pct": 0.25}, 6),
        {"pairing": "half", "rotary_dim": 4},
        fused,
    ),
}


@pytest.mark.parametrize(("theirs", "rotary", "give"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("start", [0, 1000])
def test_a_layer_of_transformers_and_multi_head_attention_agree(theirs, rotary, give, start):
    family, name, published, n_kv_heads = theirs
    module = modeling(family)
    config = getattr(module, f"{name}Config")(
        hidden_size=D_MODEL,
        num_attention_heads=N_HEADS,
        num_key_value_heads=n_kv_heads,
        attn_implementation="eager",
        **published,
    )
    layer = getattr(module, f"{name}Attention")(config, layer_idx=0).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ours = MultiHeadAttention(
        D_MODEL,
        N_HEADS,
        n_kv_heads=n_kv_heads,
        bias=True,
        rotary=RotaryEmbedding(HEAD_DIM, **rotary),
    )
    give(ours, layer)
    x = torch.randn(B, L, D_MODEL)
    rope = getattr(module, f"{name}RotaryEmbedding")(config)
    places = rope(x, torch.arange(start, start + L).expand(B, L))
    mask = additive(create_mask(causal, B, 1, L, L, device="cpu"))
    expected, _ = layer(x, position_embeddings=places, attention_mask=mask)
    out = ours(x, mask=causal, query_offset=start, key_offset=start)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5 + blur(start))


def test_a_layer_of_gpt_j_and_multi_head_attention_agree():
    module = modeling("gptj")
    config = module.GPTJConfig(n_embd=D_MODEL, n_head=N_HEADS, rotary_dim=4, n_positions=64)
    layer = module.GPTJAttention(config, layer_idx=0).eval()
    rotary = RotaryEmbedding(HEAD_DIM, pairing="interleaved", rotary_dim=4)
    ours = MultiHeadAttention(D_MODEL, N_HEADS, rotary=rotary)
    theirs = (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj)
    for linear, other in zip((ours.query, ours.key, ours.value, ours.out), theirs, strict=True):
        copy(linear, other.weight)
    x = torch.randn(B, L, D_MODEL)
    mask = additive(create_mask(causal, B, 1, L, L, device="cpu"))
    expected, _ = layer(x, attention_mask=mask, position_ids=torch.arange(L).expand(B, L))
    torch.testing.assert_close(ours(x, mask=causal), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_of_mistral_sees_as_many_keys_as_its_window_says():
    module = modeling("mistral")
    masking = importlib.import_module("transformers.masking_utils")
    config = module.MistralConfig(
        hidden_size=D_MODEL,
        num_attention_heads=N_HEADS,
        num_key_value_heads=2,
        sliding_window=4,
        rope_theta=10000.0,
        attn_implementation="eager",
    )
    layer = module.MistralAttention(config, layer_idx=0).eval()
    rotary = RotaryEmbedding(HEAD_DIM, pairing="half")
    ours = MultiHeadAttention(D_MODEL, N_HEADS, n_kv_heads=2, rotary=rotary)
    separate(ours, layer)
    x = torch.randn(B, L, D_MODEL)
    where = torch.arange(L).expand(B, L)
    mask = masking.create_sliding_window_causal_mask(
        config=config,
        inputs_embeds=x,
        attention_mask=None,
        past_key_values=None,
        position_ids=where,
    )
    assert ((mask == 0).sum(-1)[0, 0] == torch.arange(1, L + 1).clamp(max=4)).all()
    places = module.MistralRotaryEmbedding(config)(x, where)
    expected, _ = layer(x, position_embeddings=places, attention_mask=mask)
    torch.testing.assert_close(ours(x, mask=sliding_window(4)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cap", [50.0, 0.5])
def test_gemma_2_caps_its_scores_as_softcap_does_and_before_the_mask(cap):
    module = modeling("gemma2")
    config = module.Gemma2Config(
        hidden_size=D_MODEL,
        num_attention_heads=N_HEADS,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=cap,
        num_hidden_layers=1,
        attn_implementation="eager",
    )
    layer = module.Gemma2Attention(config, layer_idx=0).eval()
    q, k, v = (10 * torch.randn(B, n, L, 32) for n in (N_HEADS, 2, 2))
    allowed = create_mask(sliding_window(5), B, 1, L, L, device="cpu")
    expected, _ = module.eager_attention_forward(
        layer, q, k, v, additive(allowed), scaling=layer.scaling, softcap=cap
    )
    how = {"mask": sliding_window(5), "score_mod": softcap(cap), "scale": 24**-0.5}
    out = attention(q, k, v, **how).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    uncapped = attention(q, k, v, mask=sliding_window(5), scale=24**-0.5).transpose(1, 2)
    assert not torch.allclose(uncapped, out, atol=1e-2)


# --- T5 ---------------------------------------------------------------------------


# Of 20 buckets a side to 320, three end elsewhere if the logarithm is taken in float64.
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("n_buckets", "max_distance"),
    [
        (32, 128),
        (32, 256),
        (64, 128),
        (16, 20),
        (8, 1000),
        (320, 800),
        (4, 3),
        (20, 320),
        (40, 320),
    ],
)
def test_every_distance_falls_into_t5s_bucket(n_buckets, max_distance, bidirectional):
    T5Attention = modeling("t5").T5Attention
    distances = torch.arange(-1000, 1001)
    expected = T5Attention._relative_position_bucket(
        distances, bidirectional=bidirectional, num_buckets=n_buckets, max_distance=max_distance
    )
    how = {"n_buckets": n_buckets, "max_distance": max_distance, "bidirectional": bidirectional}
    buckets = t5_buckets(distances, **how)
    assert torch.equal(buckets, expected)
    assert buckets.min() == 0 and buckets.max() == n_buckets - 1


@pytest.mark.parametrize("is_decoder", [True, False])
def test_a_layer_of_t5_and_its_bias_agree_with_ours(is_decoder):
    module = modeling("t5")
    config = module.T5Config(
        d_model=40,
        d_kv=8,
        num_heads=H,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        is_decoder=is_decoder,
        attn_implementation="eager",
    )
    layer = module.T5Attention(config, has_relative_attention_bias=True, layer_idx=0).eval()
    bias = T5Bias(H, n_buckets=8, max_distance=16, bidirectional=not is_decoder)
    bias.table.load_state_dict(layer.relative_attention_bias.state_dict())

    n = 40  # past the largest distance
    scores = torch.zeros(1, H, n, n)
    b, h, q_idx, kv_idx = torch.meshgrid(
        torch.arange(1), torch.arange(H), torch.arange(n), torch.arange(n), indexing="ij"
    )
    made = bias(scores, b, h, q_idx, kv_idx)
    assert torch.equal(made, layer.compute_bias(n, n))
    later = bias(scores[:, :, :5], *(x[:, :, 7:12] for x in (b, h, q_idx, kv_idx)))
    assert torch.equal(later, layer.compute_bias(5, n, past_seen_tokens=7))

    # d_model is not n_heads head_dim, and no scale: the formula, rather than MultiHeadAttention.
    x = torch.randn(B, n, 40)
    mask = create_mask(causal, B, 1, n, n, device="cpu") if is_decoder else None
    expected, *_ = layer(x, mask=None if mask is None else additive(mask))
    q, k, v = (f(x).unflatten(-1, (H, 8)).transpose(1, 2) for f in (layer.q, layer.k, layer.v))
    how = {"mask": causal} if is_decoder else {}
    heads = attention(q, k, v, score_mod=bias, scale=1.0, **how)
    out = layer.o(heads.transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


# --- ALiBi ------------------------------------------------------------------------


def published_slopes(n):
    """The slopes of ALiBi's own code, for any number of heads.

    Source: Press et al., attention_with_linear_biases on GitHub, get_slopes.
    """
    if n & (n - 1) == 0:
        ratio = 2 ** (-8 / n)
        return [ratio * ratio**i for i in range(n)]
    power = 2 ** math.floor(math.log2(n))
    return published_slopes(power) + published_slopes(2 * power)[::2][: n - power]


def slopes_of_bloom(n):
    return modeling("bloom")._get_alibi_slopes(n, torch.device("cpu"))


def slopes_of_mpt(n):
    """What MPT takes off for one place."""
    bias = modeling("mpt").build_mpt_alibi_tensor(n, 2)  # (n, 1, 2)
    return -bias[:, 0, 0]


@pytest.mark.parametrize("n_heads", [*range(1, 41), 64, 71, 112, 128])
def test_slopes_are_those_of_the_paper_of_bloom_and_of_mpt(n_heads):
    slopes = alibi_slopes(n_heads)
    published = torch.tensor(published_slopes(n_heads), dtype=torch.float64)
    torch.testing.assert_close(slopes.double(), published, rtol=1e-6, atol=0)
    for theirs in (slopes_of_bloom(n_heads), slopes_of_mpt(n_heads)):
        torch.testing.assert_close(slopes, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("n_heads", [4, 6])
def test_a_layer_of_bloom_agrees_with_alibi_over_causal(n_heads):
    # Bloom adds slope times the key's position, which differs from ours by a number a query.
    module = modeling("bloom")
    size = n_heads * 8
    config = module.BloomConfig(hidden_size=size, n_head=n_heads, attn_implementation="eager")
    layer = module.BloomAttention(config, layer_idx=0).eval()
    ours = MultiHeadAttention(size, n_heads, bias=True)
    fused(ours, layer)
    x = torch.randn(B, L, size)
    bias = module.build_alibi_tensor(torch.ones(B, L, dtype=torch.long), n_heads, torch.float32)
    mask = additive(create_mask(causal, B, 1, L, L, device="cpu"))
    residual = torch.zeros_like(x)
    expected, *_ = layer(x, residual, alibi=bias, attention_mask=mask)
    out = ours(x, mask=causal, score_mod=alibi(n_heads))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


# --- masks ------------------------------------------------------------------------

IDS = torch.tensor([[5, 5, 5, 2, 2, 9, 9, 9, 9, 9, 1], [0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4]])
LENGTHS = torch.tensor([8, 3])
# transformers' name, with its arguments, beside ours.
MASKS = {
    "causal": (lambda masking: masking.causal_mask_function, causal),
    "one key": (lambda m: m.sliding_window_causal_mask_function(1), sliding_window(1)),
    "four keys": (lambda m: m.sliding_window_causal_mask_function(4), sliding_window(4)),
    "all keys": (lambda m: m.sliding_window_causal_mask_function(99), sliding_window(99)),
    "packed": (lambda m: m.packed_sequence_mask_function(IDS), document(IDS)),
    "packed and causal": (
        lambda m: m.and_masks(m.packed_sequence_mask_function(IDS), m.causal_mask_function),
        and_masks(document(IDS), causal),
    ),
    "filled up": (
        lambda m: m.padding_mask_function(torch.arange(L) < LENGTHS[:, None]),
        padding(LENGTHS),
    ),
    # A block that is read both ways at the start is a prefix.
    "prefix": (
        lambda m: m.or_masks(
            m.blockwise_overlay(torch.where(torch.arange(L) < 4, 0, -1).expand(B, L)),
            m.causal_mask_function,
        ),
        prefix_lm(4),
    ),
    "prefixes": (
        lambda m: m.or_masks(
            m.blockwise_overlay(torch.where(torch.arange(L) < LENGTHS[:, None], 0, -1)),
            m.causal_mask_function,
        ),
        or_masks(causal, padding(LENGTHS)),
    ),
    "a window in a cache": (
        lambda m: m.add_offsets_to_mask_function(m.sliding_window_causal_mask_function(3), 7, 6),
        shift(sliding_window(3), 7, 6),
    ),
}


@pytest.mark.parametrize(("theirs", "ours"), MASKS.values(), ids=MASKS)
def test_transformers_and_our_mask_mods_allow_the_same_pairs(theirs, ours):
    masking = importlib.import_module("transformers.masking_utils")
    expected = create_mask(theirs(masking), B, H, L, L, device="cpu")
    made = create_mask(ours, B, H, L, L, device="cpu")
    assert torch.equal(made, expected)
    assert made.any() and not made.all()


def test_a_window_both_ways_counts_a_side_in_transformers():
    # There 3 means three keys before, three behind and the query's own: seven.
    masking = importlib.import_module("transformers.masking_utils")
    theirs = masking.sliding_window_bidirectional_mask_function(3)
    seen = create_mask(theirs, 1, 1, L, L, device="cpu")[0, 0]
    assert seen[5].sum() == 7

    def mirrored(b, h, q_idx, kv_idx):
        return sliding_window(4)(b, h, kv_idx, q_idx)

    both = create_mask(or_masks(sliding_window(4), mirrored), 1, 1, L, L, device="cpu")[0, 0]
    assert torch.equal(both, seen)


def test_positions_that_begin_anew_are_documents():
    masking = importlib.import_module("transformers.masking_utils")
    where = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3]])
    found = masking.find_packed_sequence_indices(where)
    made = create_mask(document(found), B, 1, L, L, device="cpu")
    assert torch.equal(made, create_mask(document(IDS), B, 1, L, L, device="cpu"))

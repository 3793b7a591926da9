"""How fast the kernels are, and how much memory they take, on this machine.

    python -m benchmarks.kernels

measures everything that Part 4 shows, prints a line for each, and writes
benchmarks/kernels.json. On two cores it takes about ten minutes, and should
have the machine to itself. All sides of a comparison run in turns, in one
process, after each has been tried once; what counts is the ratio of their
medians. Before anything is timed, all sides must have computed the same.
"""

import functools
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.profiler import ProfilerActivity, profile

from attention import alibi, attention, causal, document, sliding_window, split_keys
from benchmarks.recall import processor

FILE = Path(__file__).with_suffix(".json")
B, H, D = 1, 8, 64
WINDOW, DOCUMENT = 256, 512  # keys in a window, tokens in a document
LENGTHS = (512, 1024, 2048, 4096, 8192)
Side = Callable[..., Tensor]
MIB = 2**20


def tensors(L: int, S: int | None = None) -> list[Tensor]:
    """Query, key and value, (B, H, L, D) and (B, H, S, D), float32."""
    generator = torch.Generator().manual_seed(L)
    sizes = (L, S or L, S or L)
    return [torch.randn(B, H, n, D, generator=generator) for n in sizes]


# --- the sides -------------------------------------------------------------------


def sdpa(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
    """PyTorch's fused kernel, called as it is."""
    return F.scaled_dot_product_attention(query, key, value, **how)


def ours(kernel: str, **how: Any) -> Side:
    """One of the package's kernels."""
    return functools.partial(attention, kernel=kernel, **how)


def written_out(mask: Tensor | None) -> Side:
    """The formula in four operations of PyTorch, which keep all scores."""

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.mT * D**-0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        out: Tensor = scores.softmax(-1) @ value
        return out

    return run


def transformers_eager(mask: Tensor | None) -> Side:
    """The eager attention of the transformers library, as Llama calls it."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    module = nn.Module()
    module.num_key_value_groups = 1  # type: ignore[assignment]
    bias = None
    if mask is not None:
        bias = torch.zeros(1, 1, *mask.shape).masked_fill(~mask, torch.finfo().min)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, _ = eager_attention_forward(
            module.eval(), query, key, value, bias, scaling=D**-0.5, dropout=0.0
        )
        heads: Tensor = out.transpose(1, 2)
        return heads

    return run


def x_transformers(is_causal: bool) -> Side:
    """The attention of the x-transformers library."""
    from x_transformers.attend import Attend

    attend = Attend(causal=is_causal, heads=H, flash=False).eval()
    return lambda query, key, value: attend(query, key, value)[0]


def flex_compiled(L: int, mask: Any, score_mod: Any = None) -> Side:
    """FlexAttention, compiled, with its BlockMask made before."""
    block = None if mask is None else create_block_mask(mask, None, None, L, L, device="cpu")
    # With sizes left open it makes C++ that does not compile, after a window has been compiled;
    # and after eight sizes it would not compile at all, and take the eager way in silence.
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return functools.partial(compiled, block_mask=block, score_mod=score_mod)


# --- time ------------------------------------------------------------------------


def with_backward(side: Side) -> Callable[..., list[Tensor]]:
    """The output and the gradients of query, key and value."""

    def run(*given: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in given]
        out = side(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, given[0])]

    return run


def same(sides: dict[str, Callable[..., Any]], given: list[Tensor]) -> None:
    """Raise unless all sides compute the same."""
    want: list[Tensor] = []
    for name, side in sides.items():
        got = side(*given)
        got = [got] if isinstance(got, Tensor) else got
        want = want or got
        for x, y in zip(got, want, strict=True):
            says = f"{name} computes something else"
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4, msg=says)


def times(
    sides: dict[str, Callable[..., Any]], given: list[Tensor], seconds: float = 1.5
) -> dict[str, dict[str, float]]:
    """Median, and the middle half, of each side's seconds; sides take turns."""
    same(sides, given)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    begin = time.perf_counter()
    least = 3 if given[0].shape[-2] >= 4096 else 7
    while len(taken[name := next(iter(sides))]) < least or (
        time.perf_counter() - begin < seconds and len(taken[name]) < 2000
    ):
        for name, side in sides.items():
            start = time.perf_counter()
            side(*given)
            taken[name].append(time.perf_counter() - start)
    found = {}
    for name, seconds_taken in taken.items():
        low, middle, high = statistics.quantiles(seconds_taken, n=4)
        found[name] = {"low": low, "median": middle, "high": high, "runs": len(seconds_taken)}
    return found


def compare(
    rows: list[dict[str, Any]], sides: dict[str, Side], given: list[Tensor], **what: Any
) -> None:
    """Time sides and add a row; print their ratios to the first."""
    run: dict[str, Callable[..., Any]] = dict(sides)
    if what["pass"] != "forward":
        run = {name: with_backward(side) for name, side in sides.items()}
    gc.collect()
    found = times(run, given)
    rows.append({**what, "threads": torch.get_num_threads(), "seconds": found})
    first = next(iter(found.values()))["median"]
    ratios = "  ".join(f"{name} {x['median'] / first:.2f}" for name, x in found.items())
    print({**what, "threads": torch.get_num_threads()}, f"{first * 1e3:.2f} ms", ratios, flush=True)


def speed() -> list[dict[str, Any]]:
    """Every kernel and every peer on the masks of the book."""
    rows: list[dict[str, Any]] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for L in LENGTHS if threads == 1 else (1024, 4096):
            given = tensors(L)
            for mask in ("full", "causal"):
                mod = causal if mask == "causal" else None
                is_causal = mod is not None
                fast: dict[str, Side] = {
                    "sdpa": functools.partial(sdpa, is_causal=is_causal),
                    "tiled": ours("tiled", mask=mod),
                }
                slow: dict[str, Side] = {}
                if L <= 4096:
                    hidden = torch.ones(L, L, dtype=torch.bool).tril() if is_causal else None
                    slow = {
                        "reference": ours("reference", mask=mod),
                        "written out": written_out(hidden),
                        "transformers": transformers_eager(hidden),
                        "x-transformers": x_transformers(is_causal),
                    }
                flex = {}
                if threads == 1 and L <= 4096:
                    flex = {"flex, compiled": flex_compiled(L, mod)}
                compare(rows, fast | slow | flex, given, mask=mask, L=L, **{"pass": "forward"})
                both = {"mask": mask, "L": L, "pass": "forward and backward"}
                some = slow if threads == 1 and L <= 1024 else {}
                compare(rows, fast | some, given, **both)
    return rows


def masks() -> list[dict[str, Any]]:
    """Masks and a bias for which PyTorch's fused kernel needs a table of all pairs."""
    rows: list[dict[str, Any]] = []
    torch.set_num_threads(1)
    for L in (1024, 4096):
        given = tensors(L)
        ids = torch.arange(L) // DOCUMENT
        q, k = torch.arange(L)[:, None], torch.arange(L)
        bias = -alibi_table(L)
        causal_bias = bias.masked_fill(q < k, -math.inf)
        tables: dict[str, tuple[Any, Any, Tensor]] = {
            "window": (sliding_window(WINDOW), None, (q >= k) & (q - k < WINDOW)),
            "documents": (document(ids), None, ids[:, None] == ids),
            "ALiBi": (None, alibi(H), bias),
            "causal ALiBi": (causal, alibi(H), causal_bias),
        }
        for mask, (mod, score_mod, table) in tables.items():
            how = {"mask": mod, "score_mod": score_mod}
            sides: dict[str, Side] = {
                "sdpa": functools.partial(sdpa, attn_mask=table),
                "tiled": ours("tiled", **how),
            }
            flex = {"flex, compiled": flex_compiled(L, mod, score_mod)}
            compare(rows, sides | flex, given, mask=mask, L=L, **{"pass": "forward"})
            both = {"mask": mask, "L": L, "pass": "forward and backward"}
            compare(rows, sides, given, **both)
    given = tensors(8192)
    window = ours("tiled", mask=sliding_window(WINDOW))
    for name, side in {"causal": ours("tiled", mask=causal), "window": window}.items():
        compare(rows, {"tiled": side}, given, mask=name, L=8192, **{"pass": "forward"})
    return rows


def alibi_table(L: int) -> Tensor:
    """What ALiBi takes off, written out, (1, H, L, L)."""
    from attention import alibi_slopes

    place = torch.arange(L)
    distance = (place[:, None] - place).abs()
    return (alibi_slopes(H)[:, None, None] * distance)[None]


def decoding() -> list[dict[str, Any]]:
    """One query against a long cache; and what an adapter costs where L = S = 1."""
    rows: list[dict[str, Any]] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for S in (2048, 32768):
            sides: dict[str, Side] = {
                "sdpa": sdpa,
                "reference": ours("reference"),
                "tiled": ours("tiled"),
                "split_keys, 2": functools.partial(split_keys, n_parts=2),
                "split_keys, 8": functools.partial(split_keys, n_parts=8),
            }
            compare(rows, sides, tensors(1, S), mask="full", L=1, S=S, **{"pass": "forward"})
    torch.set_num_threads(1)
    one = {"sdpa": sdpa, "attention(kernel='sdpa')": ours("sdpa")}
    compare(rows, one, tensors(1), mask="full", L=1, S=1, **{"pass": "forward"})
    return rows


# --- memory ----------------------------------------------------------------------


def peak(run: Callable[[], object]) -> int:
    """Bytes that PyTorch holds at the most while something runs, above what it held before."""
    run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    held = most = 0
    results = profiler.profiler.kineto_results
    events = [e for e in results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def memory() -> list[dict[str, Any]]:
    """Memory beyond the inputs, with the output, and with backward the gradients."""
    rows = []
    torch.set_num_threads(1)
    for L in LENGTHS:
        query, key, value = tensors(L)
        sides: dict[str, Side] = {"sdpa": sdpa, "tiled": ours("tiled")}
        if L <= 4096:
            sides["written out"] = written_out(None)
        for name, side in sides.items():
            leaves = [x.detach().requires_grad_() for x in (query, key, value)]

            def backward(side: Side = side, leaves: list[Tensor] = leaves) -> object:
                return torch.autograd.grad(side(*leaves).square().sum(), leaves)

            found = {
                "forward": peak(functools.partial(side, query, key, value)),
                "forward and backward": peak(backward),
            }
            rows.append({"kernel": name, "L": L, "bytes": found})
            print(name, L, {k: f"{x / MIB:.1f} MiB" for k, x in found.items()}, flush=True)
    return rows


# --- the machine -----------------------------------------------------------------


def limits() -> list[dict[str, float]]:
    """What this machine does at best, of what a kernel does: each alone, on large tensors.

    The products of a kernel are narrow, (256, 64) with (64, 512), and its exponentials are many.
    """
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        a, b = torch.randn(2, 2048, 2048)
        c = torch.empty_like(a)
        source = torch.randn(64 * MIB)
        target = torch.empty_like(source)
        narrow = torch.randn(H, 256, D), torch.randn(H, 512, D).mT
        scores = torch.empty(H, 256, 512)
        alone: dict[str, Callable[..., object]] = {
            "matmul": functools.partial(torch.mm, a, b, out=c),
            "narrow": functools.partial(torch.bmm, *narrow, out=scores),
            "copy": functools.partial(target.copy_, source),
            "read": source.sum,
            "exp2": functools.partial(torch.exp2, scores, out=torch.empty_like(scores)),
        }
        found = {}
        for name, run in alone.items():
            taken = []
            for _ in range(40):
                start = time.perf_counter()
                run()
                taken.append(time.perf_counter() - start)
            found[name] = statistics.median(taken[2:])
        rows.append(
            {
                "threads": threads,
                "flops_a_second": 2 * 2048**3 / found["matmul"],
                "flops_a_second_narrow": 2 * D * scores.numel() / found["narrow"],
                "bytes_a_second": 2 * source.numel() * 4 / found["copy"],
                "bytes_read_a_second": source.numel() * 4 / found["read"],
                "powers_a_second": scores.numel() / found["exp2"],
            }
        )
        print(rows[-1], flush=True)
    return rows


def origin() -> dict[str, object]:
    """Where and with what this was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=FILE.parent
    )
    return {
        "command": "python -m benchmarks.kernels",
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "x-transformers": version("x-transformers"),
        "shape": {"B": B, "H": H, "D": D, "dtype": "float32"},
    }


def main() -> None:
    """Measure everything and write the file."""
    results = {
        "origin": origin(),
        "limits": limits(),
        "memory": memory(),
        "decoding": decoding(),
        "masks": masks(),
        "speed": speed(),
    }
    FILE.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

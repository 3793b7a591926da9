"""What each idea of the book buys, on its running task.

    python -m benchmarks.recall

trains each layer with five seeds, prints a line for each, and writes
benchmarks/recall.json, from which docs/recall.md takes its table. On two cores
it takes about four minutes. Accuracies depend on the machine in the last digits,
so the file names it.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from attention import (
    CausalSelfAttention,
    MultiHeadAttention,
    RotaryEmbedding,
    SelfAttention,
    T5Bias,
    alibi,
    attention,
    causal,
    train_recall,
)
from attention.masking import ScoreMod

FILE = Path(__file__).with_suffix(".json")
D_MODEL, SEEDS, STEPS = 64, 5, (100, 300)


class Without(nn.Module):
    """Self-attention in which the input stands in for some of the three roles."""

    def __init__(self, *missing: str) -> None:
        super().__init__()
        linear = {role: nn.Linear(D_MODEL, D_MODEL, bias=False) for role in ROLES}
        roles = {r: nn.Identity() if r in missing else linear[r] for r in ROLES}
        self.roles = nn.ModuleDict(roles)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (role(x)[:, None] for role in self.roles.values())
        return attention(query, key, value)[:, 0]


ROLES = ("query", "key", "value")


class CausalHeads(MultiHeadAttention):
    """Multi-head attention that never sees the future, and may have a bias."""

    def __init__(self, *sizes: int, bias: ScoreMod | None = None, **how: Any) -> None:
        super().__init__(*sizes, **how)
        self.score_mod = bias

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, mask=causal, score_mod=self.score_mod)


def rotary() -> nn.Module:
    """Two causal heads with rotary positions."""
    turn = RotaryEmbedding(D_MODEL // 2, pairing="half")
    return CausalHeads(D_MODEL, 2, rotary=turn)


# Layers whose name begins with "no positions" are trained without position vectors.
# name: chapter, what makes a layer, numbers that a cache would keep for a token
LAYERS: dict[str, tuple[int, Callable[[], nn.Module], int]] = {
    "one head": (3, lambda: SelfAttention(D_MODEL, D_MODEL), 2 * D_MODEL),
    "without query": (3, lambda: Without("query"), 2 * D_MODEL),
    "without key": (3, lambda: Without("key"), 2 * D_MODEL),
    "without query and key": (3, lambda: Without("query", "key"), 2 * D_MODEL),
    "without value": (3, lambda: Without("value"), 2 * D_MODEL),
    "one head, causal": (5, lambda: CausalSelfAttention(D_MODEL, D_MODEL), 2 * D_MODEL),
    "2 heads, causal": (6, lambda: CausalHeads(D_MODEL, 2), 2 * D_MODEL),
    "4 heads, causal": (6, lambda: CausalHeads(D_MODEL, 4), 2 * D_MODEL),
    "64 heads, causal": (6, lambda: CausalHeads(D_MODEL, 64), 2 * D_MODEL),
    "no positions": (9, lambda: MultiHeadAttention(D_MODEL, 2), 2 * D_MODEL),
    "no positions, causal": (9, lambda: CausalHeads(D_MODEL, 2), 2 * D_MODEL),
    "no positions, rotary": (11, rotary, 2 * D_MODEL),
    "no positions, T5": (12, lambda: CausalHeads(D_MODEL, 2, bias=T5Bias(2)), 2 * D_MODEL),
    "no positions, ALiBi": (12, lambda: CausalHeads(D_MODEL, 2, bias=alibi(2)), 2 * D_MODEL),
}


def measure(name: str) -> dict[str, object]:
    """Median accuracy over the seeds after each number of steps, and bytes."""
    chapter, make, kept = LAYERS[name]
    accuracy, lowest = {}, {}
    for steps in STEPS:
        how: dict[str, Any] = {"steps": steps, "positional": not name.startswith("no positions")}
        runs = [train_recall(make, seed=seed, **how) for seed in range(SEEDS)]
        accuracy[str(steps)] = round(median(runs), 4)
        lowest[str(steps)] = round(min(runs), 4)
    return {
        "chapter": chapter,
        "accuracy": accuracy,
        "lowest": lowest,
        "weight_bytes": sum(4 * p.numel() for p in make().parameters()),
        "kept_bytes": 4 * kept,
    }


def processor() -> str:
    """What the machine calls its processor, and the instructions that torch takes for it."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    """Train everything and write the file."""
    results = {}
    for name in LAYERS:
        results[name] = measure(name)
        print(f"{name:24} {results[name]['accuracy']}", flush=True)
    origin = {
        "command": "python -m benchmarks.recall",
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "seeds": SEEDS,
    }
    FILE.write_text(json.dumps({"origin": origin, "layers": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

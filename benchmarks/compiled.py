"""What Triton's compiler makes of the kernel for a GPU, which needs no GPU.

    python -m benchmarks.compiled

compiles the tiles among which attention.kernels.triton chooses, the smallest for
float32 alone, for two kinds of GPU, and writes benchmarks/compiled.json, from which
docs/fast/gpu.md takes its table: what a program holds on the chip, which registers
spill into memory, and by which instructions it multiplies. It takes about two
minutes on one core.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attention.kernels import triton as triton_kernel

FILE = Path(__file__).with_name("compiled.json")
KERNELS = ("forward", "backward_query", "backward_key")
TARGETS = {"sm_80": 80, "sm_90": 90}  # A100, H100
SIZES = (("bf16", 64), ("bf16", 128), ("fp32", 64))
PRODUCTS = {"wgmma": "wgmma.mma_async", "mma": "mma.sync", "fma": "fma.rn"}
ONE_EACH = ("first", "last", "by_first", "by_last", "lse", "grad_lse", "delta")


def compiled(kernel: str, dtype: str, head_dim: int, target: str, config: Any) -> Any:
    """A kernel of one size as machine code, all strides divisible by 16 but for the last, 1."""
    function = getattr(triton_kernel, kernel).fn
    fixed = dict.fromkeys(("D", "Dv", "WIDTH", "WIDTH_V"), head_dim)
    fixed |= {"WIDE": tl.float32, **config.kwargs}
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    hints: dict[tuple[int, ...], Any] = {}
    for i, name in enumerate(function.arg_names):
        if name in fixed:
            signature[name], constants[i,] = "constexpr", fixed[name]
        elif name == "scale":
            signature[name] = ("fp32", "fp32")
        elif name in ("H", "group", "L", "S", "LENGTH", "BYTES"):
            signature[name] = "i32"
        else:
            of = "i32" if "first" in name or "last" in name else dtype
            of = "fp32" if name in ("lse", "grad_lse", "delta") else of
            n = 3 if name in ONE_EACH else 4
            signature[name] = ("*" + of, ("i32",) * (n - 1) + ("constexpr",))
            constants[i, 1, n - 1] = 1
            for at in ((i, 0), *((i, 1, j) for j in range(n - 1))):
                hints[at] = [["tt.divisibility", 16]]
    return triton.compile(
        ASTSource(function, signature, constants, hints),
        target=GPUTarget("cuda", TARGETS[target], 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )


def resources(code: Any) -> dict[str, Any]:
    """Bytes of shared memory, registers of a thread, bytes of it that spill, and the products."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(n) for name, n in re.findall(r"(REG|STACK):(\d+)", said)}
    return {
        "shared": code.metadata.shared,
        "registers": found["REG"],
        "spilled": found["STACK"],
        "products": next(name for name, op in PRODUCTS.items() if op in code.asm["ptx"]),
    }


def main() -> None:
    rows = []
    for kernel in KERNELS:
        *configs, small = getattr(triton_kernel, kernel).configs
        for target in TARGETS:
            for dtype, head_dim in SIZES:
                for config in configs if dtype == "bf16" else [small]:
                    code = compiled(kernel, dtype, head_dim, target, config)
                    row = {"kernel": kernel, "dtype": dtype, "head_dim": head_dim}
                    row |= {"target": target, "queries": config.kwargs["QUERIES"]}
                    row |= {"keys": config.kwargs["KEYS"], "warps": config.num_warps}
                    row |= {"stages": config.num_stages, **resources(code)}
                    rows.append(row)
                    print(row, flush=True)
    shown = {"command": "python -m benchmarks.compiled", "triton": triton.__version__}
    FILE.write_text(json.dumps(shown | {"kernels": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The pages are judged under one arithmetic, and show what every arithmetic gives."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from snippets import arithmetic, sameness

ROOT = Path(__file__).parents[2]
PAGE = """# A page

```python
import os

os.environ.get("MKL_CBWR")
```
```output
'COMPATIBLE'
```

`1`{data-expr="int(os.environ['OMP_NUM_THREADS'])"} thread; `3`{data-expr="1 + 2"}.
"""


@pytest.mark.skipif(not arithmetic._can_pin(), reason="no x86-64 with AVX2, or no Linux")
def test_these_tests_run_under_the_pinned_arithmetic() -> None:
    import torch

    assert torch.backends.cpu.get_cpu_capability() == "AVX2"
    assert torch.get_num_threads() == 1
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"


def test_an_arithmetic_takes_the_place_of_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    for name, settings in arithmetic.ARITHMETICS.items():
        if name == arithmetic.PINNED and not arithmetic._can_pin():
            settings = arithmetic.ARITHMETICS[arithmetic.OWN]
        monkeypatch.setenv("GOMP_SPINCOUNT", "7")
        arithmetic.use(name)
        assert {k: os.environ[k] for k in arithmetic.SETTINGS & os.environ.keys()} == settings
    arithmetic.use()


def test_where_it_cannot_be_pinned_nothing_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(arithmetic, "_can_pin", lambda: False)
        arithmetic.use()
        assert "MKL_CBWR" not in os.environ
        assert not arithmetic.is_pinned(ROOT)
        assert arithmetic.describe(ROOT).startswith("arithmetic of this machine (")
    arithmetic.use()


def test_after_torch_it_is_too_late_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", object())
    arithmetic.use()  # it is in force already
    with pytest.raises(RuntimeError, match="its arithmetic can no longer be chosen"):
        arithmetic.use("threads")
    assert "GOMP_SPINCOUNT" not in os.environ


def test_another_torch_is_not_the_pinned_one(book: Path) -> None:
    (book / "constraints.txt").write_text("torch==1.2.3\n")
    assert not arithmetic.is_pinned(book)


def test_what_is_not_the_same_is_listed_with_its_place_and_its_values() -> None:
    records = {
        "a": {"docs/p.md:4": "tensor([1.0])\n0.25", "docs/p.md:9: x": "True"},
        "b": {"docs/p.md:4": "tensor([1.0])\n0.25", "docs/p.md:9: x": "False"},
        "c": {"docs/p.md:4": "tensor([1.0])\n0.26", "docs/p.md:9: x": "True"},
        "d": {"docs/p.md:4": "tensor([1.0])"},
    }
    assert [*sameness.compare(records)] == [
        "docs/p.md:4:\n    a, b: 0.25 (line 2)\n    c: 0.26 (line 2)\n    d:  (line 2)",
        "docs/p.md:9: x:\n    a, c: True\n    b: False\n    d: (nothing)",
    ]
    assert [*sameness.compare({"a": records["a"], "b": records["a"]})] == []


@pytest.mark.skipif(not arithmetic._can_pin(), reason="no x86-64 with AVX2, or no Linux")
def test_one_command_runs_the_pages_under_every_arithmetic(
    book: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    page = book / "docs/page.md"
    page.write_text(PAGE)
    command: list[Any] = ["-p", "snippets.pytest_plugin", f"--rootdir={book}", "-c", "/dev/null"]
    result = pytester.runpytest_subprocess(*command, "--arithmetic", "all", page)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "docs/page.md:4:",
            "    pinned: 'COMPATIBLE'",
            "    own, scalar, threads: ",
            "docs/page.md:12: int(os.environ['OMP_NUM_THREADS']):",
            "    pinned, own, scalar: 1",
            "    threads: 2",
            "2 are not the same in all of them",
        ]
    )
    assert not (book / ".book").exists(), "a run that compares verifies nothing"

"""Run texts as `python -` does, each in a process of its own, without importing torch each time.

The processes come from one that has imported torch and nothing else, so that a text still finds
only what it imports itself.
"""

import contextlib
import multiprocessing
import sys
import tempfile
import traceback
import types
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

# macOS cannot be relied on to fork a process that has loaded its frameworks.
CONTEXT = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")
AT_ONCE = 2
SECONDS = 120


@dataclass(frozen=True)
class Outcome:
    """What a process printed, to either stream, and whether it ended well."""

    out: str
    err: str
    code: int | None


def run_all(texts: list[str]) -> list[Outcome]:
    """The outcome of each text."""
    CONTEXT.set_forkserver_preload(["torch"])
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(len(texts))]
        processes = [
            CONTEXT.Process(target=_as_main, args=item) for item in zip(texts, places, strict=True)
        ]
        waiting, running = processes[::-1], list[BaseProcess]()
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                running.append(waiting.pop())
                running[-1].start()
            if not wait([process.sentinel for process in running], SECONDS):
                for process in running:
                    process.kill()
            running = [process for process in running if process.is_alive()]
        return [
            Outcome(*((place / name).read_text("utf-8") for name in ("out", "err")), p.exitcode)
            for place, p in zip(places, processes, strict=True)
        ]


def _as_main(text: str, place: Path) -> None:
    place.mkdir()
    with (
        contextlib.chdir(place),
        open("out", "w", encoding="utf-8") as out,
        open("err", "w", encoding="utf-8") as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        try:
            exec(compile(text, "<stdin>", "exec"), main.__dict__)
        except Exception:
            traceback.print_exc()
            sys.exit(1)

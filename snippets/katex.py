"""Typeset TeX to HTML and MathML at build time: no script, no request in the reader's browser."""

import atexit
import functools
import json
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent / "vendor" / "katex.min.js"
MACROS = {
    r"\R": r"\mathbb{R}",
    r"\softmax": r"\operatorname{softmax}",
    r"\lse": r"\operatorname{lse}",
    r"\diag": r"\operatorname{diag}",
    r"\T": r"^{\top}",
}


class TexError(ValueError):
    """KaTeX refused a formula."""


@functools.cache
def _engine() -> Any:
    from py_mini_racer import MiniRacer

    engine = MiniRacer()
    atexit.register(engine.close)  # left open, it may keep Python from ending
    engine.eval(SCRIPT.read_text("utf-8"))
    return engine


@functools.cache
def typeset(tex: str, display: bool = False) -> str:
    """HTML with MathML inside. An unknown macro or a dubious construct raises `TexError`."""
    options = {
        "displayMode": display,
        "output": "htmlAndMathml",
        "throwOnError": True,
        "strict": "error",
        "macros": MACROS,
    }
    call = f"katex.renderToString({json.dumps(tex)}, {json.dumps(options)})"
    guarded = (
        f"(() => {{ try {{ return [{call}, null] }} catch (e) {{ return [null, e.message] }} }})()"
    )
    html, error = json.loads(_engine().eval(f"JSON.stringify({guarded})"))
    if error:
        raise TexError(error)
    return str(html)

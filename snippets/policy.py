"""A content security policy in each page: nothing from other hosts, no script that is not ours.

Styles keep 'unsafe-inline': KaTeX places the parts of a formula by style attributes. The theme's
few scripts in the page are allowed by their hashes, and every page allows those of all, because
with instant navigation a page keeps the policy of the one that was loaded first.
"""

import base64
import hashlib
import re
from pathlib import Path

SCRIPT = re.compile(r"<script(?P<attrs>[^>]*)>(?P<body>.*?)</script>", re.S)
CHARSET = '<meta charset="utf-8">'
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",  # and the hashes
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data:",
    "font-src": "'self'",
    "connect-src": "'self'",  # instant navigation, the search index
    "worker-src": "'self'",  # the search
    "manifest-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'self'",
}


def hashes(page: str) -> set[str]:
    """The sources of the scripts that stand in a page, data apart."""
    bodies = (
        match["body"]
        for match in SCRIPT.finditer(page)
        if "src=" not in match["attrs"] and "json" not in match["attrs"]
    )
    return {
        f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
        for body in bodies
    }


def write(site: Path) -> None:
    """Put the policy into every page of a built site."""
    pages = {path: path.read_text("utf-8") for path in site.glob("**/*.html")}
    every = sorted({source for text in pages.values() for source in hashes(text)})
    rules = POLICY | {"script-src": " ".join([POLICY["script-src"], *every])}
    content = "; ".join(f"{name} {sources}" for name, sources in rules.items())
    meta = f'<meta http-equiv="Content-Security-Policy" content="{content}">'
    for path, text in pages.items():
        path.write_text(text.replace(CHARSET, CHARSET + meta, 1), "utf-8")

"""The site as it is deployed: built once, served under a path, opened in a real browser."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from reader import PATH, PUBLIC, ROOT, SOURCES

from snippets import ledger

CANDIDATES = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


class Pages(http.server.SimpleHTTPRequestHandler):
    """Serves files as a host of static pages does: for what is missing, the site's own 404.html."""

    protocol_version = "HTTP/1.1"

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        page = Path(self.directory, PATH.strip("/"), "404.html")
        if code != HTTPStatus.NOT_FOUND or not page.exists():
            super().send_error(code, message, explain)
            return
        body = page.read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing: what goes wrong, the browser reports."""


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder that is served, and its address: known before the site is built, which names it."""
    folder = tmp_path_factory.mktemp("served")
    handler = functools.partial(Pages, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def build(folder: Path, **env: str) -> None:
    """Build the site into a folder, and stand no warning."""
    subprocess_env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT), **env}
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=subprocess_env,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr, result.stderr


@pytest.fixture(scope="session")
def site(served: tuple[Path, str]) -> Path:
    """The built site. The pages are run first where the ledger does not speak for them."""
    if any(ledger.why_stale(ROOT, page) for page in SOURCES):
        subprocess.run([sys.executable, "-m", "pytest", "-q", "docs"], cwd=ROOT, check=True)
    folder, address = served
    build(folder / PATH.strip("/"), SITE_URL=address + PATH)
    return folder / PATH.strip("/")


@pytest.fixture(scope="session")
def url(site: Path, served: tuple[Path, str]) -> str:
    """Where the built site is served."""
    return served[1] + PATH


@pytest.fixture(scope="session")
def public(site: Path, served: tuple[Path, str]) -> str:
    """Where the site is served as it is built for a public repository."""
    folder, address = served
    build(folder / "public", SITE_URL=f"{address}/public/", REPO_URL=PUBLIC)
    return f"{address}/public/"


def find_browser() -> str | None:
    """The browser of the machine; none is ever downloaded."""
    names = (os.environ.get("CHROMIUM", ""), *CANDIDATES)
    return next((found for name in names if (found := shutil.which(name))), None)


# For a module, not for the session: while it is open, no test of the same process could run an
# event loop of its own, as those that execute notebooks do.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser, which can reach nothing but this machine."""
    executable = find_browser()
    if not executable:
        complain = pytest.fail if os.environ.get("CI") else pytest.skip
        complain("no Chromium or Chrome found: install one, or say CHROMIUM=/path/to/it")
    with sync_playwright() as playwright:
        args = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=executable, args=args)
        yield browser
        browser.close()

"""The site as a public repository deploys it: built once, served under a path, opened in a browser."""

import fcntl
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
from playwright.sync_api import Browser, Page, sync_playwright
from reader import HOST, PATH, PUBLIC, ROOT, SOURCES, URL, WIDTHS, forget

from tests import record

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
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Of several workers the first builds it, and the others wait."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, done = shared / "served" / PATH.strip("/"), shared / "built"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            for page in SOURCES:
                record.entry(page)  # runs the pages where they have not been run as they are
            build(folder)
            done.touch()
    return folder


def build(folder: Path) -> None:
    """Build the site into a folder, and stand no warning."""
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "SITE_URL": URL, "REPO_URL": PUBLIC}
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr, result.stderr


@pytest.fixture(scope="session")
def port(site: Path) -> Iterator[int]:
    """Where this worker serves the site. The browser alone knows: its pages name no port."""
    handler = functools.partial(Pages, directory=str(site.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def find_browser() -> str | None:
    """The browser of the machine; none is ever downloaded."""
    names = (os.environ.get("CHROMIUM", ""), *CANDIDATES)
    return next((found for name in names if (found := shutil.which(name))), None)


# For a module, not for the session: while it is open, no test of the same process could run an
# event loop of its own, as those that execute notebooks do.
@pytest.fixture(scope="module")
def browser(port: int) -> Iterator[Browser]:
    """A real browser, which can reach the site and nothing else."""
    executable = find_browser()
    if not executable:
        complain = pytest.fail if os.environ.get("CI") else pytest.skip
        complain("no Chromium or Chrome found: install one, or say CHROMIUM=/path/to/it")
    with sync_playwright() as playwright:
        rules = f"MAP {HOST}:80 127.0.0.1:{port}, MAP * ~NOTFOUND"
        args = [f"--host-resolver-rules={rules}"]
        browser = playwright.chromium.launch(executable_path=executable, args=args)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def desk(browser: Browser) -> Iterator[Page]:
    """The one tab of a module: to open another takes as long as to load two pages."""
    size = {"width": WIDTHS["desktop"], "height": 780}
    clipboard = ["clipboard-read", "clipboard-write"]
    with browser.new_context(viewport=size, permissions=clipboard) as context:  # type: ignore[arg-type]
        yield context.new_page()


@pytest.fixture
def tab(desk: Page) -> Iterator[Page]:
    """The tab as a reader finds it who has never been here, and what goes wrong in it."""
    wrong: list[str] = []

    def hear(error: object) -> None:
        wrong.append(str(error))

    desk.on("pageerror", hear)
    yield desk
    desk.remove_listener("pageerror", hear)
    forget(desk)
    desk.emulate_media(media="screen", reduced_motion="no-preference", color_scheme="light")
    assert wrong == []

"""A real Chromium for the page's tests, and a watch on what it does: requests, dialogs,
complaints.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hands import ready

import served
from served import Served

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install playwright"
)
SWITCHES = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    found = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if found is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=SWITCHES)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A browser's context, and everything it said and asked for."""

    context: Any
    served: Served
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.on("console", lambda message: self.said.append(message.text))
        self.context.on("dialog", self._dialog)
        self.context.on("weberror", lambda error: self.said.append(str(error.error)))

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def enter(self, who: str = "ann") -> Any:
        page = self.context.new_page()
        page.set_default_timeout(20_000)
        page.goto(self.served.links[who])
        return ready(page)

    def strange(self) -> list[str]:
        """Requests to anywhere but the server."""
        return [
            url for url in self.requests if not url.startswith((self.served.url + "/", "data:"))
        ]


@pytest.fixture
def label(tmp_path: Path, chromium: Any) -> Iterator[Any]:
    """label(rows, *options, who=..., **of_the_context) -> Watched: a server and a browser that
    looks at it.
    """
    servers: list[Served] = []
    contexts: list[Watched] = []

    def start(rows: list[dict[str, Any]], *words: object, browsers: int = 1, **context: Any) -> Any:
        made = served.start(
            tmp_path, rows, *([] if "--annotator" in words else ["--annotator", "ann"]), *words
        )
        servers.append(made)
        found = [Watched(chromium.new_context(**context), made) for _ in range(browsers)]
        contexts.extend(found)
        return found[0] if browsers == 1 else found

    yield start
    for watched in contexts:
        assert watched.strange() == []
        assert watched.dialogs == []
        watched.context.close()
    for made in servers:
        if made.process.poll() is None:
            made.end()
        assert "Traceback" not in made.complained, made.complained


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: runs/pictures of the project, to be looked at."""
    folder = Path(__file__).parents[2] / "runs" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder

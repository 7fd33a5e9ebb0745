"""A browser that opens a site from disk, remembers everything that went wrong, and everything that was asked for."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 300_000
"""Milliseconds to wait for what a page shall show: a limit for what never comes, long enough for a machine with other work."""
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def launch() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=PATIENCE)
        yield browser
        browser.close()


class Visitor:
    """One page of one reader."""

    def __init__(self, browser: Any, index: Path, scheme: str, width: int = 1280, height: int = 1000) -> None:
        self.index = index
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.problems: list[str] = []
        self.page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("requestfailed", lambda request: self.problems.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: None if self.is_local(request.url) else self.problems.append(request.url))

    def is_local(self, url: str) -> bool:
        """Whether this is a file of the site, or data of a page."""
        return url.startswith((self.index.parent.as_uri(), "data:", "blob:", "about:"))

    def open(self, view: str) -> None:
        """Go to a view, as from elsewhere, so that what was there before is not taken for what is asked for."""
        self.page.goto("about:blank")
        self.page.goto(self.index.as_uri() + view)
        self.wait(view)

    def wait(self, view: str) -> None:
        """Wait until a view is drawn."""
        found = re.match(r"#/(\w+)", view)
        assert found is not None, "the address of a view"
        self.page.wait_for_selector(f'#main[data-ready="{found.group(1)}"]')

    def wait_feature(self, feature: int) -> None:
        """Wait until a feature's page is drawn."""
        self.page.wait_for_selector(f'#feature-title[data-feature="{feature}"]')

    def features(self) -> list[int]:
        """Features of the rows in the page, from top to bottom."""
        rows = self.page.locator(".grid-row").evaluate_all("rows => rows.map(row => Number(row.dataset.feature))")
        return [int(row) for row in rows]

    def selected(self) -> int:
        """The feature that the keyboard is on."""
        return int(self.page.locator('.grid-row[aria-selected="true"]').get_attribute("data-feature"))

    def count(self) -> int:
        """How many features the table lists."""
        return int(self.page.inner_text("#count").split(" ")[0].replace(",", ""))

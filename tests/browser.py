"""Pages in a real browser without a window: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_MISSING = (
    "no Chromium is installed (Debian's package chromium)"
    if CHROMIUM is None
    else "playwright is not installed (extra dev)"
    if importlib.util.find_spec("playwright") is None
    else ""
)
needs_browser = pytest.mark.skipif(bool(_MISSING), reason=_MISSING)


@contextmanager
def browser_page(*, width: int = 1280, height: int = 1200) -> Iterator[tuple[Page, list[str]]]:
    """A new window, and the list of the errors and warnings in its console and of uncaught exceptions, which grows."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": width, "height": height})
        console: list[str] = []

        def note(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                console.append(f"{message.type}: {message.text}")

        page.on("console", note)
        page.on("pageerror", lambda error: console.append(f"exception: {error}"))
        try:
            yield page, console
        finally:
            browser.close()

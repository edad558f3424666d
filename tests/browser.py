"""Pages in a real browser without a window: Debian's Chromium, driven by its command line."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian's package chromium)")

SMALLEST_WINDOW = 500
"""Pixels. The browser makes no narrower window: a narrower page is shown in a frame."""
_RESULT = "result-of-the-check"


def run_in_browser(page: str, folder: Path, check: str, *, width: int = 1280) -> tuple[Any, list[str]]:
    """What ``check`` finds in ``page``, and all that the browser wrote to its console.

    ``check`` is the body of a function that returns JSON data. It is added to a copy of the page, whose policy lets it run.
    """
    assert CHROMIUM is not None
    script = f"""
      const node = document.createElement("pre");
      node.id = "{_RESULT}";
      node.textContent = JSON.stringify((() => {{ {check} }})());
      window.parent.document.body.append(node);
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = re.sub(r"script-src ", f"script-src 'sha256-{digest}' ", page, count=1)
    whole = allowed.replace("</body>", f"<script>{script}</script></body>")
    if width < SMALLEST_WINDOW:
        frame = f'<iframe style="width:{width}px;height:1200px;border:0" srcdoc="{html.escape(whole)}"></iframe>'
        whole = f'<!doctype html><meta charset="utf-8"><body style="margin:0">{frame}</body>'
    file = folder / "page.html"
    file.write_text(whole, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--disable-dev-shm-usage"]
    command = [
        CHROMIUM,
        *flags,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={max(width, SMALLEST_WINDOW)},1200",
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    found = re.search(rf'<pre id="{_RESULT}">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]

"""A browser without a window that shows pages, and runs scripts of a test's own in them."""

import html
import json
import os
import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium: unproven that a browser shows the page without errors"
)


def chromium(page: Path, profile: Path, *arguments: str, size: str = "1240,2000") -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    quiet = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        "--virtual-time-budget=4000", "--enable-logging=stderr", f"--window-size={size}",
    ]  # fmt: skip
    return subprocess.run(
        [CHROMIUM, *quiet, f"--user-data-dir={profile}", *arguments, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=os.environ | {"HOME": str(profile)},
    )


def with_scripts(page: str, *scripts: str) -> str:
    """Returns a page that runs these as well: its policy allows them by their digests, and nothing else more."""
    digests = " ".join(f"'sha256-{b64encode(sha256(one.encode()).digest()).decode()}'" for one in scripts)
    inline = "".join(f"<script>{one}</script>" for one in scripts)
    return page.replace("script-src ", f"script-src {digests} ").replace("</body>", f"{inline}</body>")


_REPORT = """
  const report = (found) => {
    if (parent === window) document.title = JSON.stringify(found);
    else parent.postMessage(JSON.stringify(found), "*");
  };
"""
_NARROWEST = 500  # of chromium's own windows; narrower pages are shown in a frame


def answer(page: str, folder: Path, *scripts: str, width: int, dark: bool = False) -> Any:
    """Returns what the scripts handed to `report`, on a screen so wide."""
    path, outside = folder / "page.html", folder / "outside.html"
    path.write_text(with_scripts(page, _REPORT, *scripts), encoding="utf-8")
    frame = f'<iframe src="page.html" width="{width}" height="4000" style="border: 0"></iframe>'
    outside.write_text(f"<script>onmessage = (one) => {{ document.title = one.data; }}</script>{frame}")
    shown = path if width >= _NARROWEST else outside
    scheme = f"--blink-settings=preferredColorScheme={int(not dark)}"
    done = chromium(shown, folder / "profile", "--dump-dom", scheme, size=f"{max(width, _NARROWEST)},4000")
    assert "CONSOLE" not in done.stderr, done.stderr
    title = re.findall(r"<title>(.*?)</title>", done.stdout, re.S)[0]  # plots have some, too
    return json.loads(html.unescape(title))

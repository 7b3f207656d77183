"""The page in a real browser: at a phone's width and a desk's, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
WIDTHS, HEIGHT = (390, 1280), 1500
# What is wider than the window and in no box that scrolls; and the lowest line of any plot's text.
_PROBE = """<script>addEventListener("load", () => {
  const right = e => e.getBoundingClientRect().right;
  const all = [...document.querySelectorAll("body *")].filter(e => !e.closest(".wide, svg"));
  const lines = [...document.querySelectorAll("svg text")].map(e => e.getBoundingClientRect());
  const style = getComputedStyle(document.body);
  const name = location.pathname.split("/").pop().replace(".html", "") + innerWidth;
  parent.postMessage({
    name,
    width: innerWidth, scroll: document.documentElement.scrollWidth,
    beyond: all.filter(e => right(e) > innerWidth + 1).map(e => e.tagName),
    text: Math.min(...lines.map(e => e.height)), paper: style.backgroundColor, ink: style.color,
  }, "*");
})</script>"""
_FRAMES = """<!doctype html><meta name="color-scheme" content="light dark">
<body style="margin:0"><script>const got = []; addEventListener("message", e => {{
  got.push(e.data); document.getElementById("out").textContent = JSON.stringify(got);
}})</script>{frames}<pre id="out"></pre>"""


def look(page: Path, folder: Path, dark: bool) -> tuple[list[dict[str, Any]], Any]:
    """What a browser says of a page at every width, and its picture (height, width, colour).

    The last is of a page whose tables do not scroll.
    """
    text = page.read_text().replace("</body>", f"{_PROBE}</body>")
    (folder / "page.html").write_text(text)
    (folder / "wide.html").write_text(text.replace("overflow-x: auto;", ""))
    shown = [*(("page", width) for width in WIDTHS), ("wide", WIDTHS[0])]
    frames = "".join(
        f'<iframe src="{name}.html" style="border:0;width:{width}px;height:{HEIGHT}px"></iframe>'
        for name, width in shown
    )
    (folder / "frames.html").write_text(_FRAMES.format(frames=frames))
    picture = folder / "seen.png"
    assert CHROMIUM is not None
    command = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000"),
        *(f"--window-size={sum(WIDTHS) + 20},{HEIGHT}", f"--screenshot={picture}", "--dump-dom"),
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        (folder / "frames.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">(.+?)</pre>', done.stdout, flags=re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    said = {frame["name"]: frame for frame in json.loads(unescape(found[1]))}
    return [said[f"{name}{width}"] for name, width in shown], imread(picture)[..., :3]


@pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_readable(real_folder: Path, tmp_path: Path, dark: bool) -> None:
    frames, picture = look(real_folder / "report.html", tmp_path, dark)
    *frames, too_wide = frames
    for frame in frames:
        assert frame["scroll"] == frame["width"]
        assert frame["beyond"] == []
        assert frame["text"] >= 10  # pixels, of the lowest line of text in any plot
        assert contrast(frame["paper"], frame["ink"]) > 7  # WCAG 2.2, level AAA
    assert too_wide["scroll"] > too_wide["width"]
    for left, width in zip((0, WIDTHS[0]), WIDTHS, strict=True):
        seen = picture[:HEIGHT:5, left : left + width : 5]
        assert (np.median(seen) < 0.2) == dark
        assert seen.std() > 0.05
        assert len(np.unique(seen.reshape(-1, 3).round(2), axis=0)) > 50


def contrast(*colours: str) -> float:
    """WCAG's ratio of "rgb(…)" colours."""
    levels = []
    for colour in colours:
        parts = np.array([int(part) / 255 for part in re.findall(r"\d+", colour)[:3]])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(levels) / min(levels)

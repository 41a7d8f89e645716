"""What tests of pages share: a strict reader of HTML, and a browser."""

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sandbox import ROOT

COMPARISON_SCRIPT = (ROOT / "pipeline/reports/templates/comparison.js").read_text()
"""The only script of pages that compare runs."""

VOID = {"meta", "img", "br", "link", "input", "hr"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


class Page(HTMLParser):
    """A page's parts; tags that do not match are an error."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.tags, self.ids, self.addresses, self.words = [], [], [], []
        self._open = []
        self.feed(self.source)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                self.addresses.append(value)
            assert not name.startswith("on"), f"a handler in <{tag}>"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        """All text, spaces and line breaks as one space."""
        return " ".join(" ".join(self.words).split())


def check(file: Path, script: str = "") -> Page:
    """A page that is well-formed and asks nobody for anything.

    Its only script is ``script``, and its security policy forbids any other one.
    """
    page = Page(file)
    assert page.source.startswith("<!DOCTYPE html>")
    assert not {"link", "iframe", "object", "form", "base"} & set(page.tags)
    assert re.findall("<script>(.*?)</script>", page.source, re.S) == [script] * bool(script)
    assert page.tags.count("script") == bool(script)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    assert f'"Content-Security-Policy" content="{policy}{digest}\'"' in page.source
    assert len(page.ids) == len(set(page.ids))
    inside = {f"#{name}" for name in page.ids}
    assert not [a for a in page.addresses if a not in inside and not a.startswith("data:image/")]
    used = re.findall(r"url\(([^)]*)\)", page.source)
    assert not [address for address in used if address not in inside]
    assert "@import" not in page.source
    return page


def look(file: Path, scratch: Path, *, width: int = 1100, height: int = 1400) -> np.ndarray:
    """The page in a browser, [height, width, 3]; errors on its console fail the test."""
    target = scratch / f"{file.stem}-{width}.png"
    printed = browse(file, scratch, f"--screenshot={target}", f"--window-size={width},{height}")
    assert "CONSOLE" not in printed, printed
    with Image.open(target) as image:
        return np.asarray(image.convert("RGB"))


def measured_width(file: Path, scratch: Path, *, width: int) -> tuple[int, int]:
    """How wide the page's content is in a window, and how wide that window is, in pixels."""
    measure = (
        "const e = document.documentElement;"
        "e.setAttribute('data-widths', `${e.scrollWidth} ${e.clientWidth}`)"
    )
    dom = after(file, scratch, measure, f"--window-size={width},900")
    content, window = re.search(r'data-widths="(\d+) (\d+)"', dom).groups()
    return int(content), int(window)


def after(file: Path, scratch: Path, code: str, *options: str) -> str:
    """The page as it is in a browser after code has run in it, as HTML."""
    copy = scratch / f"changed-{file.name}"
    text = re.sub("<meta http-equiv[^>]*>", "", file.read_text(encoding="utf-8"))
    run = f"<script>addEventListener('load', () => {{{code}}})</script>"
    copy.write_text(text.replace("</body>", f"{run}</body>"))
    return browse(copy, scratch, "--dump-dom", *options)


def browse(file: Path, scratch: Path, *options: str) -> str:
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-device-scale-factor=1",
        "--enable-logging=stderr",
        f"--user-data-dir={scratch / 'profile'}",
        *options,
        file.resolve().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout + done.stderr

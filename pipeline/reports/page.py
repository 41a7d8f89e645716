"""Pages of one file: no requests, no scripts, readable offline, on paper and on a phone."""

import base64
import hashlib
import io
import math
import os
import re
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image, UnidentifiedImageError

from dsd.utils.errors import DataError
from dsd.utils.files import published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_number", "embed", "inline", "open_page", "write_page"]

_LARGE_PICTURE = 300_000
"""Bytes above which a picture is embedded with loss; the file itself is kept as it is."""

_PNG = b"\x89PNG\r\n\x1a\n"


def write_page(path: Path, template: str, *, script: str | None = None, **content: object) -> None:
    """Fill a template of this package, all values escaped, and write the whole page or none.

    The page's policy allows one script by its hash: ``script``, a file beside the template. A
    name in the template that ``content`` lacks is an error.
    """
    templates = Path(__file__).with_name("templates")
    folder = FileSystemLoader(templates)
    code = "" if script is None else (templates / script).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    pages = Environment(
        loader=folder,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters["number"] = as_number
    content |= {"script": Markup(code), "script_hash": digest}
    text = pages.get_template(template).render(**content)
    with published(path) as file:
        file.write(text.encode())


def open_page(path: Path, root: Path) -> None:
    """Show a page in the browser where there is a display, and print where it is."""
    print(f"Page: {path.relative_to(root)}", flush=True)
    has_display = sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}
    if not (has_display and webbrowser.open(path.resolve().as_uri())):
        print(f"There is no browser here; open {path.resolve().as_uri()}", flush=True)


def as_number(value: float | None, error: float | None = None) -> str:
    """The digits that are known, or a dash.

    Args:
        value: The number.
        error: Its standard error; the last digit shown is the error's first one, or second where
            the first is 1. Without it there are three digits that count.
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if error is not None and error > 0:
        first = math.floor(math.log10(error))
        decimals = -first + (error < 2 * 10.0**first)
        return f"{round(value, decimals):,.{max(decimals, 0)}f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def embed(path: Path, text: str) -> Markup:
    """A PNG file inside the page; ``text`` says what it shows to those who cannot see it.

    Raises:
        DataError: It is no PNG picture: a page that is passed on must not carry other files, to
            which a link may lead.
    """
    raw, kind = path.read_bytes(), "png"
    try:
        if not raw.startswith(_PNG):
            raise UnidentifiedImageError
        if len(raw) > _LARGE_PICTURE:
            with Image.open(io.BytesIO(raw), formats=["PNG"]) as image:
                image.convert("RGB").save(smaller := io.BytesIO(), "WEBP", quality=85)
            raw, kind = smaller.getvalue(), "webp"
    # On damaged bytes, Pillow's decoders raise nearly anything.
    except Exception as error:
        msg = f"{path} is no PNG picture: remove it, or run `dvc repro` again"
        raise DataError(msg) from error
    encoded = base64.b64encode(raw).decode()
    return Markup('<img src="data:image/{};base64,{}" alt="{}">').format(kind, encoded, text)


def inline(
    figure: "Figure", name: str, text: str, tips: Mapping[str, str] | None = None
) -> Markup:
    """A figure inside the page, as SVG whose letters are text; the same bytes each time.

    Ids in the SVG begin with ``name``, which is unique on the page; ``text`` says what it shows,
    and ``tips`` what the parts with these ids show, where the mouse rests on them.
    """
    from matplotlib import rc_context

    target = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(target, format="svg", metadata=nothing)
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for part, tip in (tips or {}).items():
        start = f'<g id="{name}-{part}">'
        svg = svg.replace(start, f"{start}<title>{escape(tip)}</title>")
    # Its size in points would keep it from shrinking with the page.
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    label = Markup('<svg role="img" aria-label="{}"').format(text)
    # Drawn by matplotlib, which escapes the text that it draws.
    return label + Markup(svg.removeprefix("<svg"))

"""The page of ``dvc plots``: its curves are drawn without a network."""

import re

from dvc_render import VegaRenderer
from dvc_render.html import render_html

from flows.dvc.plots import write_library
from sandbox import ROOT
from sandbox.pages import browse, needs_browser

ROWS = [{"images": n, "gap": gap, "rev": rev} for rev in ("old", "new")
        for n, gap in ((0, ""), (64, 3.0), (128, 2.0))]  # fmt: skip


def page_of(root):
    page, template = root / "dvc_plots" / "index.html", root / ".dvc" / "plots.html"
    template.parent.mkdir()
    template.write_text((ROOT / ".dvc" / "plots.html").read_text())
    curve = VegaRenderer(ROWS, "gap", x="images", y="gap", template="linear")
    return render_html([curve], page, html_template=template)


@needs_browser
def test_curves_are_drawn_without_a_network(tmp_path):
    page = page_of(tmp_path)
    write_library(tmp_path)
    sources = re.findall(r"""src=["']([^"']*)""", page.read_text())
    assert sources == ["../.dvc/tmp/vega.js"]
    dom = browse(page, tmp_path, "--dump-dom", "--virtual-time-budget=5000")
    assert '<p id="missing" hidden' in dom
    # Of the two points that are known; for each revision, and where the mouse feels them.
    lines = re.findall(r'aria-roledescription="line mark"[^>]* d="(M[^"]*)"', dom)
    assert [line.count("L") for line in lines] == [1] * 4


@needs_browser
def test_without_the_library_the_page_says_what_to_do(tmp_path):
    dom = browse(page_of(tmp_path), tmp_path, "--dump-dom")
    assert '<p id="missing">Curves need' in dom

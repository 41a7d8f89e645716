"""Sentences of README and docs that a machine can check; test_tables.py has their tables."""

import re

import pytest
from ruamel.yaml import YAML
from stage_helpers import params_with

from pipeline.params.model import Params
from pipeline.params.presets import load_preset
from sandbox import ROOT

TEXT = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / folder / "README.md" for folder in ("bench", "data")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROSE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
AVOIDED = re.compile(
    r"\b(laws?|told|anew|as long as|but for|at once|of its own|what it|so many|without a word)\b",
    re.IGNORECASE,
)
SECTIONS = "|".join(Params.model_fields)
SUFFIXES = {"py", "json", "csv", "md"}
DAG = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


def table_below(heading):
    """Rows of the first table below a heading, as lists of cells."""
    lines = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0].splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_it_fits_on_a_few_screens_and_the_first_names_both_commands():
    lines = TEXT.splitlines()
    assert len(lines) <= 120
    first_screen = "\n".join(lines[:25])
    assert "make run" in first_screen
    assert "make test" in first_screen


def test_the_stage_table_is_that_of_dvc():
    rows = table_below("The pipeline")
    assert [row[0].strip("`") for row in rows] == list(DAG)
    for name, reads, writes, code in rows:
        stage = DAG[name.strip("`")]
        artifacts = {dep for dep in stage["deps"] if dep.startswith("data/")}
        if name != "`evaluate`":
            assert set(re.findall(r"`(data/\w+)`", reads)) == artifacts
        metrics = stage.get("metrics", [])
        outputs = {path.rstrip("/") for path in re.findall(r"`([\w/.]+)`", writes)}
        assert outputs <= {*stage["outs"], *metrics}
        assert f"(pipeline/stages/{name.strip('`')}.py)" in code


OPTIONAL = ("corrupt.operator.", "data.intensity.", "data.patches.")
"""Sections that have other keys, or none, in the committed file."""


def anchors(page):
    """Of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_commands_and_keys_of_a_page_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert link.startswith("https://") or target.exists(), link
        assert not anchor or link.startswith("https://") or anchor in anchors(target), link
    for module in re.findall(r"python -m ((?:bench|flows|pipeline)[\w.]*)", text):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for script in re.findall(r"\b((?:bench|tests|pipeline|flows|dsd)/\w[\w/]*\.\w+)", text):
        assert (ROOT / script).exists(), script
    for key in re.findall(rf"(?<![\w./-])((?:{SECTIONS})(?:\.[a-z]\w+)+)", text):
        if key.split(".")[-1] not in SUFFIXES and not key.startswith(OPTIONAL):
            value = params_with()
            for part in key.split("."):
                value = getattr(value, part)


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_a_page_is_in_plain_words_and_short_lines(page):
    text = page.read_text()
    found = AVOIDED.findall(" ".join(text.split()))
    assert not found
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = [line for line in without_code.splitlines() if not line.startswith(("|", "    "))]
    assert [line for line in prose if len(line) > 100] == []


def test_the_words_to_avoid_are_found():
    for words in ("Laws of noise", "all at once", "as long as it lasts", "he was told"):
        assert AVOIDED.search(words)
    assert not AVOIDED.search("flawless, untold, whatever")


def test_the_edit_that_it_shows_changes_sigma():
    command = re.search(r"sed -i 's/(.+)/(.+)/' params.yaml", TEXT)
    before = (ROOT / "params.yaml").read_text()
    assert before.count(command[1]) == 1
    after = YAML(typ="safe").load(before.replace(command[1], command[2]))
    assert after["corrupt"]["sigma"] == 0.3


def test_the_papers_network_is_as_large_as_the_papers():
    import torch

    from dsd.model.networks.unet import UNet

    assert "The paper's network (preset `cifar10`)" in TEXT
    preset = load_preset("cifar10").items()
    network = {key.partition(".")[2]: at for key, at in preset if key.startswith("network.")}
    params = params_with(network=network)
    with torch.device("meta"):
        net = UNet(params.network, channels=3, resolution=32)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(55.7e6, rel=0.03)

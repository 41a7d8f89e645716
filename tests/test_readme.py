"""The README's sentences that a machine can check."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from stage_helpers import params_with

from dsd.config import Params

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
DOTTED = set(re.findall(r"`([a-z]+(?:\.[a-z_]+)+)\b", TEXT))
KEYS = sorted(key for key in DOTTED if key.split(".")[0] in Params.model_fields)
DAG = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


def table_below(heading):
    """Rows of the first table below a heading, as lists of cells."""
    lines = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0].splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_it_fits_on_a_few_screens_and_the_first_names_both_commands():
    lines = TEXT.splitlines()
    assert len(lines) <= 200
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
        assert f"(pipeline/{name.strip('`')}.py)" in code


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_every_link_into_the_project_leads_somewhere(link):
    assert link.startswith("https://") or (ROOT / link).exists()


@pytest.mark.parametrize("key", KEYS)
def test_every_parameter_it_names_exists(key):
    assert len(KEYS) >= 8
    value = params_with()
    for part in key.split("."):
        value = getattr(value, part)


def test_the_edit_that_it_shows_changes_sigma():
    command = re.search(r"sed -i 's/(.+)/(.+)/' params.yaml", TEXT)
    before = (ROOT / "params.yaml").read_text()
    assert before.count(command[1]) == 1
    after = YAML(typ="safe").load(before.replace(command[1], command[2]))
    assert after["corrupt"]["sigma"] == 0.3


def test_the_papers_network_is_as_large_as_the_papers():
    import torch

    from dsd.networks.unet import UNet

    written = re.search(r"`(patch: 1, .+?)`", TEXT)[1]
    params = params_with(network=YAML(typ="safe").load(f"{{{written}}}"))
    with torch.device("meta"):
        net = UNet(params.network, channels=3, resolution=32)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(55.7e6, rel=0.03)

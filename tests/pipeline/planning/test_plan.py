"""The planner beside real stages, and the command."""

import re
import shutil
from importlib import import_module

import pytest
from stage_helpers import ROOT, Recorder, files_of, params_with

from pipeline.__main__ import main
from pipeline.execution.run import run_stage
from pipeline.params.reader import load_params
from pipeline.planning.plan import costs, measure
from pipeline.stage_io.paths import Paths
from pipeline.stages import STAGES
from sandbox.tiny_params import TINY, set_params


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A workspace with tiny parameters and images."""
    root = tmp_path_factory.mktemp("tiny")
    shutil.copy(ROOT / "params.yaml", root)
    set_params(root, TINY)
    shutil.copytree(ROOT / "data" / "embedded", root / "data" / "embedded")
    return Paths(root)


@pytest.fixture(scope="module")
def rates(tiny):
    return measure(load_params(tiny.root), tiny)


def by_stage(params, rates):
    return {cost.stage: cost for cost in costs(params, rates)}


def test_planning_leaves_the_workspace_as_it_was(tiny, rates):
    assert sorted(path.name for path in tiny.root.iterdir()) == ["data", "params.yaml"]
    assert [path.name for path in (tiny.root / "data").iterdir()] == ["embedded"]


def test_every_stage_takes_time_memory_and_disk(tiny, rates):
    found = by_stage(load_params(tiny.root), rates)
    assert list(found) == [*STAGES]
    for cost in found.values():
        assert 0 < cost.seconds < 600
        assert 1e8 < cost.memory < 1e11
        assert cost.disk > 0


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_hours_grow_in_proportion_to_kimg(stage, tiny, rates):
    params = load_params(tiny.root)
    config = getattr(params, stage)
    longer = {"kimg": 10 * config.kimg}
    if stage == "distill":  # the same number of measurements
        every = 10 * config.selection.every_kimg
        longer["selection"] = config.selection.model_copy(update={"every_kimg": every})
    before = by_stage(params, rates)
    changed = params.model_copy(update={stage: config.model_copy(update=longer)})
    after = by_stage(changed, rates)
    other = rates.seconds["generator"] + rates.seconds[params.distill.selection.features]
    other *= 3 * params.distill.selection.num_samples if stage == "distill" else 0
    steps = before[stage].seconds - other
    assert after[stage].seconds - other == pytest.approx(10 * steps)
    assert steps == pytest.approx(rates.seconds[stage] * 1000 * config.kimg / 32)
    del before[stage], after[stage]
    assert after == before


@pytest.mark.slow
def test_disk_is_within_a_factor_of_two_of_a_real_run(tiny, rates, tmp_path):
    params = load_params(tiny.root)
    shutil.copytree(tiny.root, tmp_path / "run")
    paths = Paths(tmp_path / "run")
    planned = by_stage(params, rates)
    for name in STAGES:
        paths.report(name).mkdir(parents=True)
        run_stage(import_module(f"pipeline.stages.{name}"), params, paths, Recorder())
        folder = paths.features if name == "evaluate" else paths.artifact(name)
        size = sum(map(len, files_of(folder).values()))
        if name in ("pretrain", "distill"):
            states = paths.state(name).rglob("state")
            size += 3 * max(file.stat().st_size for file in states)
        assert size / 2 < planned[name].disk < 2 * size, name


def test_a_set_that_has_to_be_downloaded_is_planned_with_random_images(tiny, tmp_path):
    params = load_params(tiny.root)
    source = {"source": "torchvision", "name": "fashion-mnist", "path": "x", "max_images": 200}
    data = params_with(data=source).data
    found = measure(params.model_copy(update={"data": data}), Paths(tmp_path))
    assert found.images == 200
    assert found.bytes["generator"] == 16 * 16
    assert not any(tmp_path.iterdir())


def test_the_command_prints_all_stages(tiny, monkeypatch, capsys):
    monkeypatch.chdir(tiny.root)
    assert main(["plan"]) == 0
    text = capsys.readouterr().out
    for stage in (*STAGES, "total"):
        assert re.search(rf"{stage} .*\d s .*[\d,]+\.\d .*[\d,]+\.\d", text), text
    assert "off by a third or more" in " ".join(text.split())


def test_wrong_parameters_and_missing_images_have_their_exit_codes(tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["plan"]) == 3
    assert capsys.readouterr().err.count("data.path") == 1
    set_params(tmp_path, {"pretrain.kimg": -1.0})
    assert main(["plan"]) == 2
    assert capsys.readouterr().err.count("pretrain.kimg") == 1

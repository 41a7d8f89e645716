"""The planner: arithmetic against what real stages do, and the command."""

import re
import shutil
import signal
import time
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from counting_features import COUNTED
from rich.console import Console
from stage_helpers import (
    ROOT,
    Recorder,
    files_of,
    params_with,
    png,
    random_images,
    write_parquet,
)

from dsd.model.checkpoint import load_denoiser
from dsd.utils.errors import DataError, Interrupted, ParamsError
from pipeline.__main__ import main
from pipeline.execution.run import run_stage
from pipeline.params.reader import load_params
from pipeline.planning import gauge, plan, probes
from pipeline.planning.forecast import Images, Line, Measured, Memory, SpaceRates, Steps, forecast
from pipeline.planning.gauge import climb
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain
from sandbox.tiny_params import TINY, set_params

FREE = SpaceRates(dim=4, extract=0.0, moments=0.0, distance=0.0, pairs=0.0)
STEPS = Steps(1.0, 1.0, Memory(1e9))
IDLE = Measured(
    start_up=0.0,
    images=Images(1000, (1, 8, 8), (1, 8, 8), 64),
    prepare=Line(0.0, 0.0),
    corrupt=Line(0.0, 0.0),
    weights=1000,
    trained=1000,
    pretrain=STEPS,
    distill=STEPS,
    forward=0.0,
    sampler=0.0,
    observe=0.0,
    spaces={"counting_features:make_counter": FREE},
    cache_limit=2**31,
    memory_data=Memory(1e8),
    memory_evaluate=Memory(1e9),
)


def tiny(**changes):
    sections = {
        "data": {"path": "images.parquet", "pad": 0, "resolution": 8},
        "corrupt": {"num_heldout": 200, "workers": 1},
        "network": {"model_channels": 32, "channel_mult": [1], "attention_resolutions": []},
        "pretrain": {
            "batch_size": 8,
            "kimg": 0.16,
            "lr_warmup_kimg": 0.0,
            "sample_every_kimg": 0.08,
        },
        "distill": {
            "batch_size": 8,
            "kimg": 0.16,
            "lr_warmup_kimg": 0.0,
            "selection": {
                "features": "counting_features:make_counter",
                "every_kimg": 0.064,
                "num_samples": 70,
                "save_top_k": 1,
            },
        },
        "evaluate": {"features": ["counting_features:make_counter"], "num_samples": 60},
        "compute": {"device": "cpu", "precision": "float32"},
        "run": {"checkpoint_minutes": 1000.0},
    }
    return params_with(**{k: {**v, **changes.get(k, {})} for k, v in sections.items()})


def planned(params, measured, stage):
    return next(item for item in forecast(params, measured) if item.stage == stage)


def middle(params, measured, stage):
    found = planned(params, measured, stage)
    return (found.low + found.high) / 2


Ran = namedtuple("Ran", "paths counted")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A workspace in which all stages have run, and how many images each made features of."""
    paths, counted = Paths(tmp_path_factory.mktemp("ran")), {}
    write_parquet(paths.root / "images.parquet", [png(x) for x in random_images(1000, 8, 8)])
    for stage in (prepare, corrupt, pretrain, distill, evaluate):
        name = stage.__name__.split(".")[-1]
        paths.report(name).mkdir(parents=True, exist_ok=True)
        COUNTED["images"] = 0
        run_stage(stage, tiny(), paths, Recorder())
        counted[name] = COUNTED["images"]
    return Ran(paths, counted)


@pytest.fixture(scope="module")
def measured(ran):
    """Free work on models and images of the right size."""
    net = load_denoiser(ran.paths.artifact("pretrain"))
    weights = sum(tensor.nbytes for tensor in net.state_dict().values())
    trained = sum(tensor.nbytes for tensor in net.parameters())
    return replace(IDLE, weights=weights, trained=trained)


@pytest.mark.parametrize("stage", ["distill", "evaluate"])
def test_it_counts_the_images_of_which_a_real_stage_makes_features(stage, ran):
    costly = replace(IDLE, spaces={"counting_features:make_counter": replace(FREE, extract=1.0)})
    free, all_ = middle(tiny(), IDLE, stage), middle(tiny(), costly, stage)
    assert all_ - free == pytest.approx(ran.counted[stage])


@pytest.mark.parametrize("stage", ["prepare", "corrupt", "pretrain", "distill"])
def test_artifacts_are_as_large_as_real_ones(stage, ran, measured):
    files = files_of(ran.paths.artifact(stage))
    real = sum(map(len, files.values()))
    if stage == "distill":  # the plan is for a best one that is not the last
        generator = sum(len(files[name]) for name in files if name.startswith("generator/"))
        real += generator * (2 - len([*(ran.paths.artifact(stage) / "checkpoints").iterdir()]))
    assert planned(tiny(), measured, stage).kept == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("stage", [pretrain, distill])
def test_states_are_as_large_as_real_ones(stage, ran, measured, tmp_path):
    shutil.copytree(ran.paths.root, tmp_path / "copy")
    paths, name = Paths(tmp_path / "copy"), stage.__name__.split(".")[-1]
    shutil.rmtree(paths.state(name))  # of the run that is done
    with pytest.raises(Interrupted):
        run_stage(stage, tiny(), paths, Stopping())
    (state,) = paths.state(name).glob("*/state")
    plan_ = planned(tiny(), measured, name)
    kept = plan_.kept - measured.weights if stage is distill else 0
    assert (plan_.running - kept) / 3 == pytest.approx(state.stat().st_size, rel=0.05)


class Stopping(Recorder):
    """Asks a stage to stop after its first step."""

    def stop_signal(self):
        return signal.SIGINT


def test_the_cache_of_features_is_as_large_as_a_real_one(ran):
    real = sum(map(len, files_of(ran.paths.features).values()))
    assert planned(tiny(), IDLE, "evaluate").kept == pytest.approx(real, rel=0.05)
    assert planned(tiny(), replace(IDLE, cache_limit=100), "evaluate").kept == 100


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_twice_as_long_takes_twice_as_long(stage):
    once, twice = (middle(tiny(**{stage: {"kimg": k}}), IDLE, stage) for k in (0.16, 0.32))
    assert (once, twice) == (pytest.approx(20), pytest.approx(40))


def test_slow_and_fast_steps_make_a_range():
    uneven = replace(IDLE, pretrain=Steps(0.5, 1.5, Memory(0.0)), start_up=10.0)
    found = planned(tiny(), uneven, "pretrain")
    assert (found.low, found.high) == (pytest.approx(10 + 7), pytest.approx(30 + 13))


def test_prepare_and_corrupt_follow_their_lines():
    lines = replace(IDLE, prepare=Line(2.0, 0.1), corrupt=Line(3.0, 0.2))
    assert middle(tiny(), lines, "prepare") == pytest.approx(2 + 100)
    assert middle(tiny(), lines, "corrupt") == pytest.approx(3 + 200)


def test_images_of_the_data_are_counted_as_memory():
    observed = 800 * 4 * 64
    assert planned(tiny(), IDLE, "pretrain").memory == (1e9 + observed, 0.0)
    on_gpu = replace(IDLE, pretrain=replace(STEPS, memory=Memory(1e9, 2e9)))
    assert planned(tiny(), on_gpu, "pretrain").memory == (1e9 + observed, 2e9 + observed)


def test_a_climb_ends_at_all_images_or_when_time_is_over():
    cpu, sizes = torch.device("cpu"), []

    def make(size):
        sizes.append(size)
        return lambda: time.sleep(0.002 * size)

    quick = climb(make, 20, share=0.5, device=cpu)
    assert (quick.size, sizes) == (20, [1, 2, 8, 20])
    assert quick.each == pytest.approx(0.002, rel=0.5)
    assert len(quick.seconds) > 2
    sizes.clear()
    slow = climb(make, 10_000, share=0.1, device=cpu)
    assert (slow.size, sizes) == (32, [1, 2, 8, 32])
    assert slow.each == pytest.approx(0.002, rel=0.5)
    sizes.clear()
    assert climb(make, 10_000, share=0.0, device=cpu).size == 2


def test_memory_beyond_the_last_climb_is_on_a_line(monkeypatch):
    peaks = iter([Memory(100.0), Memory(117.0), Memory(117.0), Memory(117.0)])
    monkeypatch.setattr(gauge, "peak_memory", lambda device: next(peaks))
    # Libraries are no part of the line.
    libraries = iter([0.0, 7.0, 7.0, 7.0])
    monkeypatch.setattr(gauge, "library_memory", lambda: next(libraries))
    make = lambda size: lambda: None  # noqa: E731
    cpu = torch.device("cpu")
    assert climb(make, 50, share=0.0, device=cpu, at_once=32).memory.host == 117 + 30 * 10


def test_a_forked_process_counts_the_libraries_that_it_has_not_used_yet(monkeypatch):
    monkeypatch.setattr(probes, "_LIBRARIES", 500.0)
    for here, expected in ((200.0, 1300.0), (600.0, 1000.0)):
        monkeypatch.setattr(probes, "library_memory", lambda here=here: here)
        assert probes._with_libraries(Memory(1000.0, 7.0)) == Memory(expected, 7.0)


def test_a_full_disk_and_a_full_memory_are_told_with_the_remedy(tmp_path, monkeypatch):
    plans, paths = forecast(tiny(), IDLE), Paths(tmp_path)
    assert plan.remedies(plans, paths) == []
    usage = SimpleNamespace(free=plan.disk_needed(plans) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (line,) = plan.remedies(plans, paths)
    assert "DISK" in line
    assert "data.max_images" in line
    memory = SimpleNamespace(available=9e8)
    monkeypatch.setattr(plan.psutil, "virtual_memory", lambda: memory)
    _, line = plan.remedies(plans, paths)
    assert line.startswith("MEMORY: evaluate needs 1 GB, but only 900 MB")
    assert "run.eval_batch_size" in line


def test_a_disk_holds_what_is_kept_and_what_the_running_stage_needs():
    first = plan.StagePlan("pretrain", 0.0, 0.0, Memory(0.0), kept=5.0, running=10.0)
    second = first._replace(stage="distill", kept=3.0, running=1.0)
    assert plan.disk_needed([first, second]) == 15
    assert plan.disk_needed([first, second._replace(running=9.0)]) == 17


def test_times_and_sizes_as_people_say_them():
    assert [plan.duration(s) for s in (5, 185, 3599.6, 9000, 950_400)] == [
        "0:05 min", "3:05 min", "60:00 min", "2:30 h", "11 days",
    ]  # fmt: skip
    assert [plan.size(b) for b in (0, 999, 1000, 2.5e6, 999.9e6, 3e12)] == [
        "0 B", "999 B", "1 kB", "2.5 MB", "1 GB", "3 TB",
    ]  # fmt: skip


def test_torchvision_sets_are_planned_without_a_download(tmp_path):
    params = tiny(data={"source": "torchvision", "name": "cifar10", "path": "downloads"})
    found = probes.data(params, Paths(tmp_path), tmp_path)
    assert found.images == Images(50_000, (3, 8, 8), (3, 8, 8), 192)
    assert not (tmp_path / "downloads").exists()


def test_missing_images_and_too_many_held_out_are_refused(ran, tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*data\.path"):
        probes.data(tiny(data={"path": "nowhere.parquet"}), ran.paths, tmp_path)
    with pytest.raises(ParamsError, match=r"corrupt\.num_heldout is 1000.*only 1000"):
        probes.data(tiny(corrupt={"num_heldout": 1000}), ran.paths, tmp_path)


def test_wrong_parameters_and_missing_images_have_their_exit_codes(tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    set_params(tmp_path, {"pretrain.kimg": -1.0})
    assert main(["plan"]) == 2
    assert "pretrain.kimg" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_plans_all_stages_from_real_probes(tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    set_params(tmp_path, TINY)
    assert main(["plan"]) == 3
    assert "data.path" in capsys.readouterr().err
    shutil.copytree(ROOT / "data" / "embedded", tmp_path / "data" / "embedded")
    console = Console(record=True, width=120)
    plan.show_plan(load_params(tmp_path), Paths(tmp_path), console)
    text = console.export_text()
    for stage in ("prepare", "corrupt", "pretrain", "distill", "evaluate", "total"):
        assert re.search(rf"{stage} .*\d:\d\d min to .*\d [MG]B", text), text
    assert "steps of 32 images" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "params.yaml"]

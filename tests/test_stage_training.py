"""The stages pretrain, distill and evaluate: what they read, write, and do when interrupted."""

import json
import shutil
import signal

import pytest
import torch
from stage_helpers import Recorder, files_of, png, random_images, write_parquet
from tiny_stages import SELECTION, Stopper, run, tiny

from dsd.checkpoint import load_denoiser, load_generator
from dsd.config import IdentityOperator
from dsd.errors import DataError, Interrupted, NonFiniteError, ParamsError
from dsd.generator import make_latents
from dsd.images import to_uint8
from dsd.imagestore import ImageStore
from dsd.metrics.memorisation import Observations, memorisation
from dsd.operators import Operator
from dsd.seeds import derive_seed
from pipeline import corrupt, distill, evaluate, prepare, pretrain
from pipeline.evaluate import MODELS
from pipeline.paths import Paths
from pipeline.tables import read_csv


@pytest.mark.parametrize("stage", [pretrain, distill])
@pytest.mark.parametrize("after", [0, 7, 17])
def test_an_interrupted_stage_continues_and_ends_with_the_same_bytes(stage, after, copied):
    name = stage.__name__.split(".")[-1]
    whole = files_of(copied.artifact(name)), files_of(copied.report(name))
    shutil.rmtree(copied.artifact(name))
    shutil.rmtree(copied.report(name))
    with pytest.raises(Interrupted, match="the same command continues") as stopped:
        run(stage, tiny(), copied, Stopper(after))
    assert stopped.value.exit_code == 128 + signal.SIGINT
    assert not copied.artifact(name).exists()
    log = Recorder()
    run(stage, tiny(), copied, log)
    assert any(line.startswith("resumed after ") for line in log.lines)
    assert (files_of(copied.artifact(name)), files_of(copied.report(name))) == whole
    assert [path.name for path in copied.state(name).glob("*/done")] == ["done"]


@pytest.mark.parametrize("stage", [pretrain, distill])
def test_other_parameters_do_not_continue_an_interrupted_run(stage, copied):
    with pytest.raises(Interrupted):
        run(stage, tiny(), copied, Stopper(7))
    log = Recorder()
    name = stage.__name__.split(".")[-1]
    run(stage, tiny(**{name: {"learning_rate": 2.0e-3}}), copied, log)
    assert not any(line.startswith("resumed") for line in log.lines)


@pytest.mark.parametrize("stage", [pretrain, distill])
def test_training_needs_no_clean_image(stage, copied):
    for clean in (copied.artifact("prepare"), copied.root / "images.parquet"):
        shutil.rmtree(clean) if clean.is_dir() else clean.unlink()
    run(stage, tiny(), copied)


def test_the_generator_is_the_checkpoint_with_the_least_proximal_distance(trained):
    lines = (trained.report("distill") / "trajectory.csv").read_text().splitlines()
    header, rows = lines[0].split(","), [line.split(",") for line in lines[1:]]
    assert header == ["images", "gap", "proximal_frechet"]
    assert [int(row[0]) for row in rows] == [0, 64, 128, 160]
    generator = load_generator(trained.artifact("distill") / "generator", torch.device("cpu"))
    teacher = load_denoiser(trained.artifact("pretrain"), torch.device("cpu"))
    best, *others = sorted(rows, key=lambda row: float(row[2]))
    checkpoints = trained.artifact("distill") / "checkpoints"
    kept = {f"{int(row[0]):09d}" for row in (best, *others[: SELECTION["keep"] - 1], rows[-1])}
    assert {folder.name for folder in checkpoints.iterdir()} == kept
    assert len(kept) < len(rows)
    chosen = checkpoints / f"{int(best[0]):09d}"
    assert files_of(chosen) == files_of(trained.artifact("distill") / "generator")
    is_teacher = all(
        torch.equal(a, b)
        for a, b in zip(generator.denoiser.parameters(), teacher.parameters(), strict=True)
    )
    assert is_teacher == (best[0] == "0")


def test_the_summary_has_every_distance_and_its_protocol(trained):
    summary = json.loads(trained.summary.read_text())
    for name in MODELS:
        assert summary[name]["frechet"] > 0
        assert summary[name]["proximal_frechet"] > 0
        assert summary[name]["by_features"]["fashion-classifier"]["frechet"] > 0
    # Level 0.5 lies between the grid's points 0.585 and 0.296.
    assert [summary[name]["evaluations"] for name in MODELS] == [1, 35, 23, 25]
    assert summary["protocol"]["features"] == "fashion-classifier"
    assert summary["protocol"]["num_samples"] == 70
    selection = summary["selection"]
    assert selection["checkpoints"] == 4
    rows = read_csv(trained.report("evaluate") / "selection.csv")
    chosen = min(rows, key=lambda row: float(row["heldout_proximal_frechet"]))
    oracle = min(rows, key=lambda row: float(row["frechet"]))
    for name, row in (("chosen", chosen), ("last", rows[-1]), ("oracle", oracle)):
        assert selection[name] == {key: float(value) for key, value in row.items()}
    assert (trained.report("evaluate") / "comparison.png").stat().st_size > 1000


def test_copies_are_searched_for_among_the_observations_themselves(trained):
    found = json.loads(trained.summary.read_text())["memorisation"]
    generator = load_generator(trained.artifact("distill") / "generator", torch.device("cpu"))
    seed = derive_seed(tiny().seed, "evaluation latents")
    with torch.inference_mode():
        images = to_uint8(generator(make_latents(70, generator.shape, seed=seed)))
    stores = [ImageStore.open(trained.artifact("corrupt") / part) for part in ("train", "heldout")]
    observed = [Observations.of(store.all(), store.sigma, None) for store in stores]
    operator = Operator(IdentityOperator(kind="identity"), generator.shape)
    expected = memorisation(images, *observed, operator=operator, seed=tiny().seed)
    assert found["verdict"] == expected.verdict
    for name in ("p_value", "matched_training", "by_chance", "recognised", "repeated"):
        assert found[name] == pytest.approx(getattr(expected, name), abs=0.03)
    assert (found["noticed_from"], found["distinct"]) == (expected.noticed_from, expected.distinct)


@pytest.mark.parametrize("level", [0.0, 0.05, 0.2, 0.5, 0.1045])
def test_a_level_is_shown_as_it_was_written(level):
    assert evaluate._as_written(torch.tensor(level)) == level


def test_evaluating_twice_gives_the_same_bytes_and_other_batches_the_same_numbers(copied):
    before = files_of(copied.report("evaluate")), copied.summary.read_bytes()
    run(evaluate, tiny(), copied)
    assert (files_of(copied.report("evaluate")), copied.summary.read_bytes()) == before
    run(evaluate, tiny(compute={"eval_batch_size": 33}), copied)
    first, second = json.loads(before[1]), json.loads(copied.summary.read_text())
    for name in (*MODELS, "noisy_data"):
        assert second[name]["frechet"] == pytest.approx(first[name]["frechet"], rel=1e-4)


def test_noisy_sources_are_evaluated_without_clean_images(tmp_path):
    paths, params = Paths(tmp_path), tiny(data={"content": "noisy"})
    write_parquet(tmp_path / "images.parquet", [png(image) for image in random_images(150, 8, 8)])
    for stage in (prepare, corrupt, pretrain, distill, evaluate):
        run(stage, params, paths)
    summary = json.loads(paths.summary.read_text())
    assert summary["generator"]["frechet"] is None
    assert summary["generator"]["proximal_frechet"] > 0
    assert "spearman" not in summary["selection"]


def test_a_loss_that_diverges_is_named_and_the_saved_state_stays_good(copied):
    with pytest.raises(Interrupted):
        run(pretrain, tiny(), copied, Stopper(3))
    saved = files_of(copied.state("pretrain"))
    broken = tiny(pretrain={"learning_rate": 1.0e30})
    log = Recorder()
    with pytest.raises(NonFiniteError, match=r"the teacher's .*3 attempts.*same step.*learning"):
        run(pretrain, broken, copied, log)
    assert [line for line in log.lines if "strike 2 of 3: going back" in line]
    assert log.struck == [1, 2, 3]
    assert saved.items() <= files_of(copied.state("pretrain")).items()


def test_images_that_do_not_fit_the_network_are_refused_with_the_remedy(copied):
    wrong = tiny(network={"channel_mult": [1, 1, 1, 1]})
    with pytest.raises(ParamsError, match=r"8 pixels do not fit.*of 16.*pipeline check"):
        run(pretrain, wrong, copied)


def test_a_gpu_that_is_not_there_is_refused(copied, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ParamsError, match=r"compute\.device is cuda.*use cpu or auto"):
        run(pretrain, tiny(compute={"device": "cuda"}), copied)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json"])
def test_a_damaged_teacher_is_refused_by_name(name, copied):
    path = copied.artifact("pretrain") / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"{name}.*dvc repro"):
        run(distill, tiny(), copied)


def test_a_full_disk_while_saving_keeps_the_state_before(copied, monkeypatch):
    with pytest.raises(Interrupted):
        run(pretrain, tiny(), copied, Stopper(3))
    saved = files_of(copied.state("pretrain"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(pretrain, tiny(), copied, Stopper(5))
    monkeypatch.undo()
    state = {k: v for k, v in files_of(copied.state("pretrain")).items() if k.endswith("state")}
    assert state.items() <= saved.items()
    log = Recorder()
    run(pretrain, tiny(), copied, log)
    assert any(line.startswith("resumed after ") for line in log.lines)

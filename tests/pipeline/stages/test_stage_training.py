"""The stages pretrain, distill and evaluate: what they read, write, and do when interrupted."""

import json
import shutil
import signal

import pytest
import torch
from metric_twins import frechet, observed, quantised
from stage_helpers import Recorder, files_of, png, random_images, write_parquet
from tiny_features import features_of
from tiny_stages import Stopper, run, tiny

from dsd.evaluation.memorisation import Observations, memorisation
from dsd.model.checkpoint import build_denoiser, load_generator, read_spec, save_model
from dsd.model.generator import make_latents
from dsd.operators.config import IdentityOperator
from dsd.operators.operator import Operator
from dsd.storage.image_store import ImageStore
from dsd.utils.errors import DataError, Interrupted, ParamsError
from dsd.utils.images import to_uint8
from dsd.utils.random import derive_seed
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain
from pipeline.stages.evaluate import MODELS


def test_a_teacher_of_other_images_is_refused(copied):
    spec = read_spec(copied.artifact("pretrain"))
    denoiser = build_denoiser(spec.network, (3, 8, 8), seed=0)
    identity = IdentityOperator(kind="identity")
    save_model(
        copied.artifact("pretrain"), denoiser, network=spec.network, operator=identity,
        shape=(3, 8, 8), sigma_init=None,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"a teacher of 3 x 8 x 8 .*, but data/corrupt has 1 x 8"):
        run(distill, tiny(), copied)


@pytest.mark.parametrize(("stage", "after"), [(pretrain, 0), (pretrain, 17), (distill, 7)])
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
def test_training_needs_no_clean_image(stage, copied):
    for clean in (copied.artifact("prepare"), copied.root / "images.parquet"):
        shutil.rmtree(clean) if clean.is_dir() else clean.unlink()
    run(stage, tiny(), copied)


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
    run(evaluate, tiny(run={"eval_batch_size": 33}), copied)
    first, second = json.loads(before[1]), json.loads(copied.summary.read_text())
    for name in (*MODELS, "noisy_data"):
        assert second[name]["frechet"] == pytest.approx(first[name]["frechet"], rel=1e-4)


def test_noisy_sources_are_evaluated_without_clean_images(tmp_path):
    features = {"features": ["tiny_features:fine"]}
    paths, params = Paths(tmp_path), tiny(data={"content": "noisy"}, evaluate=features)
    write_parquet(tmp_path / "images.parquet", [png(image) for image in random_images(150, 8, 8)])
    for stage in (prepare, corrupt, pretrain, distill, evaluate):
        run(stage, params, paths)
    summary = json.loads(paths.summary.read_text())
    assert summary["generator"]["frechet"] is None
    noisy = ImageStore.open(paths.artifact("corrupt") / "train")
    generator = load_generator(paths.artifact("distill") / "generator")
    made = generator.sample(70, seed=derive_seed(0, "evaluation latents"))
    near = observed(made, noisy.sigma.numpy(), derive_seed(0, "evaluation noise"))
    expected = frechet(*(features_of("fine", x) for x in (near, quantised(noisy.all()))))
    assert summary["generator"]["proximal_frechet"] == pytest.approx(expected, rel=2e-3)
    assert "spearman" not in summary["selection"]


def test_images_that_do_not_fit_the_network_are_refused_with_the_remedy(copied):
    wrong = tiny(network={"channel_mult": [1, 1, 1, 1]})
    with pytest.raises(ParamsError, match=r"8 pixels do not fit.*of 16.*pipeline check"):
        run(pretrain, wrong, copied)


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

"""All stages, through every operator: from pictures to a summary."""

import json
import shutil

import pytest
import torch
from PIL import Image
from stage_helpers import Recorder, files_of, png, random_images, write_parquet
from tiny_stages import NETWORK, SCHEDULE, SELECTION, Stopper, run, tiny

from dsd.model.checkpoint import load_denoiser, load_generator
from dsd.operators.operator import Operator
from dsd.storage.image_store import ImageStore
from dsd.utils.errors import Interrupted, ParamsError
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain

pytestmark = pytest.mark.slow

STAGES = (prepare, corrupt, pretrain, distill, evaluate)
OPERATORS = {
    "identity": {},
    "mask": {"keep_prob": 0.6, "further_mask_prob": 0.1},
    "blur": {"std": 1.0, "radius": 2},
    "downsample": {"factor": 2},
    "fourier": {"acceleration": 2.0, "center": 0.2, "further_mask_prob": 0.1},
}


def params_of(kind, **data):
    operator = {"kind": kind, **OPERATORS[kind]}
    phase = "smooth" if kind == "fourier" else "none"
    short = {**SCHEDULE, "kimg": 0.064}
    size = 2 if kind == "downsample" and "content" not in data else 4
    return tiny(
        data={"phase": phase, **data},
        corrupt={"operator": operator, "sigma": 0.3},
        network={**NETWORK, "attention_resolutions": [size], "patch_size": 2},
        pretrain={**short, "sample_every_kimg": 0.032},
        distill={**short, "selection": {**SELECTION, "every_kimg": 0.032}},
    )


def source(root):
    write_parquet(root / "images.parquet", [png(image) for image in random_images(150, 8, 8)])
    return Paths(root)


@pytest.mark.parametrize("kind", [*OPERATORS][1:])  # the other tests observe everything
def test_every_operator_leads_from_pictures_to_a_summary(kind, tmp_path):
    paths, params = source(tmp_path), params_of(kind)
    for stage in STAGES:
        run(stage, params, paths)
    summary = json.loads(paths.summary.read_text())
    assert summary["protocol"]["operator"]["kind"] == kind
    assert summary["generator"]["frechet"] > 0
    assert summary["generator"]["proximal_frechet"] > 0
    assert summary["teacher_full"]["proximal_frechet"] > 0
    smaller = kind == "downsample"
    assert (summary["teacher_full"]["frechet"] is None) == smaller
    assert (summary["noisy_data"]["frechet"] is None) == smaller
    assert (summary["protocol"]["without_frechet"] is not None) == smaller
    noisy = ImageStore.open(paths.artifact("corrupt") / "train")
    operator = Operator.of_store(noisy.meta.info)
    generator = load_generator(paths.artifact("distill") / "generator")
    assert generator.sample(3, seed=0).shape == (3, *operator.shape)
    teacher = load_denoiser(paths.artifact("pretrain"))
    assert teacher(torch.zeros(1, *noisy.shape), torch.ones(1)).shape == (1, *noisy.shape)
    for picture in ("corrupt/images.png", "evaluate/comparison.png"):
        with Image.open(tmp_path / "reports" / picture) as image:
            assert len({*image.convert("L").tobytes()}) > 10
    measured = json.loads((paths.report("corrupt") / "summary.json").read_text())
    assert measured["measured_sigma"] == pytest.approx(0.3, rel=0.05)


def test_with_views_too_an_interrupted_stage_ends_with_the_same_bytes(tmp_path):
    paths, params = source(tmp_path), params_of("fourier")
    for stage in STAGES[:4]:
        run(stage, params, paths)
    for stage in (pretrain, distill):
        artifact = paths.artifact(stage.__name__.split(".")[-1])
        whole = files_of(artifact)
        shutil.rmtree(paths.state(artifact.name))
        with pytest.raises(Interrupted):
            run(stage, params, paths, Stopper(3))
        log = Recorder()
        run(stage, params, paths, log)
        assert any(line.startswith("resumed after ") for line in log.lines)
        assert files_of(artifact) == whole


def test_downsampled_observations_of_a_camera_need_no_clean_images(tmp_path):
    paths, params = source(tmp_path), params_of("downsample", content="noisy")
    for stage in STAGES:
        run(stage, params, paths)
    generator = load_generator(paths.artifact("distill") / "generator")
    assert generator.sample(2, seed=0).shape == (2, 1, 16, 16)
    summary = json.loads(paths.summary.read_text())
    assert summary["generator"]["frechet"] is None
    assert summary["generator"]["proximal_frechet"] > 0


def test_operators_that_do_not_fit_the_images_stop_the_stage_before_it_writes(tmp_path):
    paths, params = source(tmp_path), params_of("downsample", resolution=7)
    run(prepare, params, paths)
    with pytest.raises(ParamsError, match=r"factor is 2, which does not divide images of 7"):
        run(corrupt, params, paths)
    assert not (paths.artifact("corrupt") / "train").exists()


def test_observations_too_small_for_the_network_are_refused(tmp_path):
    paths = source(tmp_path)
    params = tiny(corrupt={"operator": {"kind": "downsample", "factor": 8}})
    for stage in (prepare, corrupt):
        run(stage, params, paths)
    with pytest.raises(ParamsError, match=r"images of 1 pixels do not fit .* pipeline check"):
        run(pretrain, params, paths)

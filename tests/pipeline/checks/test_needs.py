"""A stage's needs are known before any stage runs: what check accepts runs through all of them."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from stage_helpers import png, random_images, write_parquet
from tiny_stages import run, tiny

from dsd.sources.finders.torchvision_sets import TORCHVISION_SETS
from dsd.utils.errors import DataError, ParamsError
from pipeline.__main__ import main
from pipeline.checks import check
from pipeline.checks.check import check_before, look
from pipeline.checks.needs import Prepared, remarks, require
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain
from sandbox import ROOT
from sandbox.tiny_params import TINY, set_params

STAGES = {
    "prepare": prepare, "corrupt": corrupt, "pretrain": pretrain, "distill": distill,
    "evaluate": evaluate,
}  # fmt: skip
SMALL = {
    "data": {"resolution": None},
    "compute": {"micro_batch_size": 8},
    "corrupt": {"num_heldout": 2},
    "pretrain": {"kimg": 0.008, "sample_every_kimg": 1.0},
    "distill": {
        "kimg": 0.008,
        "selection": {
            "features": "fashion-classifier", "every_kimg": 1.0, "num_samples": 2, "save_top_k": 1,
        },
    },
}  # fmt: skip


def small(**changes):
    return tiny(**{key: {**SMALL.get(key, {}), **changes.get(key, {})} for key in SMALL | changes})


def sampler(**changes):
    values = small().evaluate.sampler.model_dump()
    return {"sampler": {**values, "num_steps": 4, "churn": {**values["churn"], **changes}}}


def operator(kind, **keys):
    return {"operator": {"kind": kind, **keys}}


def selected(features):
    return {"selection": {**SMALL["distill"]["selection"], "features": features}}


@pytest.mark.parametrize(
    ("count", "shape", "changes", "problem", "cure"),
    [
        (
            5, (1, 8, 8), {},
            "there are only 5 images, but 8 are needed: 6 to train on .*, 2 held out .*use more",
            None,
        ),
        (5, (1, 8, 8), {"data": {"max_images": 5}}, "raise data.max_images", None),
        (3, (1, 8, 8), {"data": {"content": "noisy"}}, "only 3 images, but 4 are needed", None),
        (
            12, (1, 8, 8), {"corrupt": {"num_heldout": 2000}},
            "corrupt.num_heldout is 2000, but there are only 12 images, and 6 must be left to "
            r"train on .*: lower it to at most 6 \(a tenth would be 2\)",
            {"corrupt": {"num_heldout": 6}},
        ),
        (
            12, (1, 8, 8), {"corrupt": {"num_heldout": 7}}, "lower it to at most 6",
            {"corrupt": {"num_heldout": 2}},
        ),
        (
            90, (1, 8, 8), {"corrupt": {"num_heldout": 1}},
            r"corrupt.num_heldout is 1, .* needs 2 .*: raise it \(a tenth would be 9\)",
            {"corrupt": {"num_heldout": 9}},
        ),
        (
            90, (1, 8, 8), {"evaluate": {"num_samples": 4}},
            "evaluate.num_samples is 4, but precision, .* need 6 images of each model: raise it",
            {"evaluate": {"num_samples": 6}},
        ),
        (
            90, (1, 17, 17), {"network": {"channel_mult": [1, 1]}},
            "17 pixels do not fit .* a multiple of 4. Lower .*, or set data.resolution to 16",
            {"network": {"channel_mult": [1], "patch_size": 1}},
        ),
        (
            90, (1, 17, 17), {"data": {"content": "noisy"}},
            "network.patch_size .* a multiple of 2. Lower .*, or crop the images to 16 x 16",
            {"network": {"patch_size": 1}},
        ),
        (
            90, (1, 16, 18), {"network": {"channel_mult": [1, 1]}},
            "18 pixels do not fit .* a multiple of 4. Lower .*, or crop the images to 16 x 16",
            {"network": {"channel_mult": [1], "patch_size": 1}},
        ),
        (
            90, (1, 10, 10), {"corrupt": operator("downsample", factor=4)},
            "corrupt.operator.factor is 4, which does not divide images of 10",
            {"network": {"patch_size": 1}, "corrupt": operator("downsample", factor=2)},
        ),
        (
            90, (1, 10, 10), {"corrupt": operator("downsample", factor=2)},
            "5 pixels do not fit .* or lower corrupt.operator.factor, or set data.resolution to 8",
            {"network": {"patch_size": 1}},
        ),
        (
            90, (1, 8, 8), {"corrupt": operator("blur", std=1.0, radius=8)},
            "corrupt.operator.radius is 8, but images of 8 pixels .* by 7 at most: lower it",
            {"corrupt": operator("blur", std=1.0, radius=7)},
        ),
        (
            20, (1, 8, 8), {"corrupt": {"sigma_hat": "auto"}},
            "corrupt.sigma_hat is auto, .*: there are only 18 images, and 128 are needed: use more"
            ", or give corrupt.sigma_hat as a number",
            {"corrupt": {"sigma_hat": 0.5}},
        ),
        (
            90, (1, 8, 8), {"network": {"attention_resolutions": [4, 16]}},
            "network.attention_resolutions names 16, but the levels .* have the sizes 4 with .*",
            {"network": {"attention_resolutions": [4]}},
        ),
        (
            90, (3, 8, 8), {"distill": selected("inception-edm")},
            "evaluate.features names fashion-classifier, which sees colour images in grey: choose "
            r"teacher or efficientnet-lite0 or inception-edm or inception-clean or an extractor",
            {"distill": selected("inception-edm"),
             "evaluate": {"features": ["efficientnet-lite0"]}},
        ),
        (
            90, (3, 8, 8), {"evaluate": {"features": ["test_needs:make_picky"]}},
            "distill.selection.features names fashion-classifier, which sees colour",
            None,
        ),
        (
            90, (4, 8, 8), {}, "fashion-classifier, which knows no images of 4 channels: choose "
            r"teacher or an extractor of your own",
            None,
        ),
        (
            90, (1, 8, 8), {"evaluate": sampler(S_churn=9.0, S_min=90.0, S_max=99.0)},
            "S_churn is 9, but no step of the sampler starts between S_min 90 and S_max 99",
            {"evaluate": sampler(S_churn=9.0, S_min=0.5)},
        ),
        (
            90, (1, 8, 8), {"corrupt": {"clean_fraction": 0.01}},
            "corrupt.clean_fraction is 0.01, which leaves none of 88 .*: raise it to at least",
            {"corrupt": {"clean_fraction": 0.02}},
        ),
        (
            90, (1, 8, 8),
            {"corrupt": {"sigma": 9.0},
             "pretrain": {"noise": {"distribution": "clamped", "P_mean": -1.2, "P_std": 1.2}}},
            "pretrain.noise: clamped levels .* nearly all below the noise of the data, 9",
            {"corrupt": {"sigma": 9.0}},
        ),
    ],
)  # fmt: skip
def test_what_a_stage_would_refuse_or_ignore_is_refused_with_a_cure(
    count, shape, changes, problem, cure
):
    with pytest.raises(ParamsError, match=problem):
        require(small(**changes), Prepared(count, shape))
    if cure is not None:
        require(small(**{**{k: v for k, v in changes.items() if k == "data"}, **cure}),
                Prepared(count, shape))  # fmt: skip


def test_all_problems_are_told_at_once_and_a_level_once_it_is_known():
    params = small(evaluate={"num_samples": 4}, corrupt={"sigma": 0.5, "num_heldout": 1})
    with pytest.raises(ParamsError) as caught:
        require(params, Prepared(90, (1, 9, 9)))
    assert len(str(caught.value).splitlines()) == 3
    require(small(), Prepared(90, (1, 8, 8), level=0.5))
    with pytest.raises(ParamsError, match=r"sigma_max is 80, but the data have noise of level 90"):
        require(small(), Prepared(90, (1, 8, 8), level=90.0))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"evaluate": sampler(S_churn=9.0, S_min=81.0)},
            "S_min 81 is above S_max 80, so no noise",
        ),
        ({"corrupt": operator("blur", std=0.1, radius=3)}, "greater than or equal to 0.2"),
    ],
)
def test_values_that_do_nothing_by_themselves_are_no_parameters(changes, problem):
    with pytest.raises(ValidationError, match=problem):
        small(**changes)
    small(evaluate=sampler(S_churn=0.0, S_min=81.0))  # of no use, but in the file as all keys are


CASES = st.fixed_dictionaries(
    {
        "count": st.integers(6, 14),
        "size": st.sampled_from([8, 12, 16, 10]),
        "wider": st.sampled_from([0, 0, 4, 6]),
        "content": st.sampled_from(["clean", "noisy"]),
        "heldout": st.sampled_from([2, 2, 3, 5]),
        "samples": st.sampled_from([6, 7, 40, 2]),
        "patch_size": st.sampled_from([1, 2]),
        "levels": st.sampled_from([[1], [1, 1]]),
        "model_channels": st.sampled_from([8, 72]),
        "operator": st.sampled_from(
            [
                {"kind": "identity"},
                {"kind": "identity"},
                {"kind": "blur", "std": 1.0, "radius": 8},
                {"kind": "downsample", "factor": 2},
                {"kind": "mask", "keep_prob": 0.5, "further_mask_prob": 0.1},
            ]
        ),
        "consistency": st.sampled_from([0.0, 1.0]),
        "divergence": st.sampled_from(["sid", "dmd", "sds"]),
        "alike": st.just(False),
    }
)
LEAST = {
    "count": 8, "size": 8, "wider": 0, "content": "clean", "heldout": 2, "samples": 6,
    "patch_size": 2, "levels": [1], "model_channels": 8, "operator": {"kind": "identity"},
    "consistency": 0.0, "divergence": "sid", "alike": False,
}  # fmt: skip


def params_of(case):
    noise = {"weight": case["consistency"], "batch_size": 3, "num_steps": 1}
    return small(
        data={"content": case["content"]},
        corrupt={"num_heldout": case["heldout"], "operator": case["operator"]},
        network={
            "patch_size": case["patch_size"], "channel_mult": case["levels"],
            "model_channels": case["model_channels"],
        },
        pretrain={"consistency": noise},
        distill={"divergence": case["divergence"]},
        evaluate={"num_samples": case["samples"], **sampler(S_churn=0.0)},
    )  # fmt: skip


@pytest.mark.slow
def test_whatever_check_accepts_runs_through_all_stages(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # nothing here outlives the power
    ran = []

    @settings(max_examples=4)
    @given(CASES)
    @example(LEAST)
    @example({**LEAST, "alike": True})
    @example({**LEAST, "count": 4, "content": "noisy", "samples": 2})
    @example({**LEAST, "count": 6, "operator": {"kind": "downsample", "factor": 2}})
    @example(
        {
            **LEAST,
            "operator": {"kind": "mask", "keep_prob": 0.5, "further_mask_prob": 0.1},
            "model_channels": 72,
        }
    )
    @example(
        {
            **LEAST,
            "operator": {"kind": "blur", "std": 1.0, "radius": 7},
            "levels": [1, 1],
            "wider": 4,
        }
    )
    def through(case):
        images = random_images(case["count"], case["size"], case["size"] + case["wider"])
        images = images[:1].repeat(len(images), 0) if case["alike"] else images
        with tempfile.TemporaryDirectory() as folder:
            paths = Paths(Path(folder))
            write_parquet(paths.root / "images.parquet", [png(image) for image in images])
            try:
                params = params_of(case)
                check_before("prepare", params, paths)
            except (ParamsError, ValidationError):
                return
            for name in STAGES:
                check_before(name, params, paths)
                run(STAGES[name], params, paths)
            ran.append(case)

    through()
    assert len(ran) >= 6


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace as the current folder, whose images lie in a folder ``pictures``."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    changes = {"data.source": "folder", "data.path": "pictures", "data.pad": 0}
    set_params(tmp_path, {**TINY, **changes, "data.resolution": None, "data.max_images": None})
    monkeypatch.chdir(tmp_path)
    return Paths(tmp_path)


def put(paths, count, height=16, width=16):
    folder = paths.root / "pictures"
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(random_images(count, height, width)):
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")


@pytest.mark.parametrize(
    ("images", "values", "problem"),
    [
        ((12,), {}, "corrupt.num_heldout is 60, but there are only 12 images"),
        ((90, 17, 17), {}, "images of 17 pixels do not fit the network"),
    ],
)
def test_check_and_every_stage_refuse_before_anything_is_written(
    workspace, capsys, images, values, problem
):
    put(workspace, *images)
    set_params(workspace.root, values)
    for command in ("check", "prepare"):
        assert main([command]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"error: {problem}")
        assert len(captured.err.splitlines()) == 1
    assert not (workspace.root / "data").exists()
    params = check_params(workspace)
    run(prepare, params, workspace)
    for stage in ("corrupt", "pretrain", "distill", "evaluate"):
        assert main([stage]) == 2
        assert problem in capsys.readouterr().err
    assert [file.name for file in (workspace.root / "data").iterdir()] == ["prepare"]
    assert not (workspace.root / "mlflow.db").exists()


def check_params(paths):
    from pipeline.params.reader import load_params

    return load_params(paths.root)


def test_a_machine_for_training_needs_no_clean_images_to_know_the_needs(tmp_path):
    paths = Paths(tmp_path)
    for operator_ in ({"kind": "identity"}, {"kind": "downsample", "factor": 2}):
        write_parquet(tmp_path / "images.parquet", [png(x) for x in random_images(20, 8, 8)])
        params = small(corrupt={"operator": operator_})
        run(prepare, params, paths)
        run(corrupt, params, paths)
        with_clean = check._written("distill", paths)
        (paths.artifact("prepare") / "meta.json").unlink()
        assert check._written("distill", paths) == with_clean == Prepared(20, (1, 8, 8), 0.5)
    too_few = small(evaluate={"num_samples": 4}, corrupt={"operator": operator_})
    with pytest.raises(ParamsError, match=r"evaluate\.num_samples is 4"):
        check_before("distill", too_few, paths)


def test_images_that_cannot_judge_are_refused_before_the_training(tmp_path):
    images = np.repeat(random_images(10, 8, 8), 2, axis=0)
    paths = Paths(tmp_path)
    write_parquet(tmp_path / "images.parquet", [png(image) for image in images])
    for sigma in (0.5, 0.0):
        params = small(corrupt={"sigma": sigma, "num_heldout": 3})
        run(prepare, params, paths)
        run(corrupt, params, paths)
        if sigma:
            check_before("pretrain", params, paths)
    with pytest.raises(DataError, match="all 3 held-out images have a copy among the training"):
        check_before("pretrain", params, paths)
    blank = [png(image) for image in np.zeros((20, 8, 8), np.uint8)]
    write_parquet(tmp_path / "images.parquet", blank)
    run(prepare, params, paths)
    run(corrupt, params, paths)
    with pytest.raises(DataError, match="all 3 held-out images are the same"):
        check_before("pretrain", params, paths)


def test_a_look_opens_first_and_distant_images_only_and_takes_what_prepare_takes(workspace):
    put(workspace, 40)
    data = small(data={"source": "folder", "path": "pictures", "resolution": 8}).data
    found = look(data, workspace.root)
    assert (found.count, found.size, found.prepared) == (40, (1, 16, 16), (1, 8, 8))
    assert 6 <= found.opened <= 10
    pictures = workspace.root / "pictures"
    (pictures / "0000.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0000\.png is no PNG.*set data\.on_error to skip"):
        look(data, workspace.root)
    skipping = data.model_copy(update={"on_error": "skip"})
    found = look(skipping, workspace.root)
    assert [Path(item.name).name for item in found.refused] == ["0000.png"]
    assert found.prepared == (1, 8, 8)
    for number in range(8):
        (pictures / f"{number:04d}.png").write_bytes(b"no picture")
    few = skipping.model_copy(update={"max_images": 4})
    assert look(few, workspace.root).prepared is None, "others may be usable"
    Image.new("RGB", (16, 16)).save(pictures / "0039.png")
    Image.new("L", (16, 16)).save(pictures / "0000.png")
    with pytest.raises(ParamsError, match=r"data\.phase is smooth, but the images have 3 channe"):
        look(
            small(
                data={"source": "folder", "path": "pictures", "phase": "smooth"}
            ).data.model_copy(update={"path": str(only(workspace, "0039.png"))}),
            workspace.root,
        )


def only(paths, name):
    """A folder with one of the pictures."""
    folder = paths.root / "one"
    folder.mkdir()
    (folder / name).write_bytes((paths.root / "pictures" / name).read_bytes())
    return folder


def test_a_look_at_torchvisions_sets_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("dsd.sources.finders.torchvision_sets._load", None)
    for name, size in (("cifar10", (3, 32, 32)), ("fashion-mnist", (1, 28, 28))):
        data = {"source": "torchvision", "path": "downloads", "name": name, "resolution": 16}
        found = look(small(data=data).data, tmp_path)
        assert (found.size, found.prepared) == (size, (size[0], 16, 16))
        assert found.count == TORCHVISION_SETS[name].count
    assert not any(tmp_path.iterdir())


def make_picky(device):
    """An extractor that takes small images only."""

    class Picky(torch.nn.Module):
        def forward(self, images):
            if images.shape[-1] > 8:
                msg = "too large for me"
                raise ValueError(msg)
            return images.float().mean(dim=(2, 3))

    return Picky()


def test_an_extractor_that_refuses_the_images_does_so_before_anything_runs(workspace, capsys):
    put(workspace, 90)
    for key in ("distill.selection.features", "evaluate.features"):
        value = "test_needs:make_picky"
        before = check_params(workspace)
        set_params(workspace.root, {key: [value] if key == "evaluate.features" else value})
        assert main(["check"]) == 3
        assert "make_picky failed (too large for me)" in capsys.readouterr().err
        was = before.distill.selection.features if "selection" in key else before.evaluate.features
        set_params(workspace.root, {key: was})
    set_params(workspace.root, {"evaluate.features": ["nowhere:make"]})
    assert main(["check"]) == 2
    assert "nowhere:make cannot be imported" in capsys.readouterr().err


def test_values_with_less_effect_than_they_seem_to_have_are_said_once(workspace, capsys):
    put(workspace, 90)
    values = {
        "corrupt.workers": 3,
        "pretrain.sample_every_kimg": 64.0,
        "distill.selection.every_kimg": 6.0,
        "evaluate.inception_weights": "weights.pt",
    }
    set_params(workspace.root, values)
    assert main(["check"]) == 0
    printed = capsys.readouterr().out
    for key in values:
        assert sum(key in line for line in printed.splitlines()) == 1
    params = check_params(workspace)
    run(prepare, params, workspace)
    (said,) = check_before("corrupt", params, workspace)
    assert said == "corrupt.workers is 3, but at most 1 can work: each writes a file of "\
        "data.shard_size images"  # fmt: skip
    assert not list(remarks(small(pretrain={"sample_every_kimg": 0.008},
                                  distill={"kimg": 1.0}), Prepared(90, (1, 8, 8))))  # fmt: skip

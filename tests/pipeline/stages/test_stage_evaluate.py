"""What the stage evaluate writes, recomputed: images drawn again by a loop of its own, then numpy.

The images themselves are nowhere saved but in pictures, so that measures and pictures are compared
with those of images drawn from the saved weights.
"""

import hashlib

import numpy as np
import pytest
import torch
from metric_twins import frechet, jackknifed, kid, observed, quantised, shares
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from scipy.stats import rankdata
from stage_helpers import params_with
from tiny_features import features_of
from tiny_run import ASSUMED, CHANGES, SHAPE, SIGMA
from twins import karras_grid, sample

from dsd.features.extractor import load_extractor
from dsd.model.checkpoint import load_generator
from dsd.utils.philox import noise_of
from dsd.utils.random import derive_seed
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import write_csv
from pipeline.stages import evaluate

MODELS = ("generator", "teacher_full", "teacher_truncated", "teacher_truncated_exact")
COUNT = 60
NOISE = derive_seed(5, "evaluation noise")
CPU = torch.device("cpu")


def drawn(run, S_churn):
    """Images of each model and how often it evaluated its network, from the saved weights."""
    seed = derive_seed(5, "evaluation latents")
    z = noise_of(seed, np.arange(COUNT), SHAPE)
    generator = load_generator(run.paths.artifact("distill") / "generator").eval()
    teacher = run.teacher().eval()

    def denoise(x, level):
        x = torch.from_numpy(np.asarray(x)).float()
        return teacher(x, torch.full((len(x),), level)).double().numpy()

    noise = [
        noise_of(derive_seed(seed, "churn", step), np.arange(COUNT), SHAPE).astype(float)
        for step in range(6)
    ]
    with torch.no_grad():
        made = generator.denoiser(1.7 * torch.from_numpy(z), torch.full((COUNT,), 1.7)).numpy()
        levels = karras_grid(6, 0.01, 20.0, 5.0)
        churn = (S_churn, 0.3, 10.0, 1.02)
        by = sample(denoise, z.astype(float), levels, ASSUMED, "heun", churn, noise)
    images = dict(zip(MODELS, map(quantised, (made, *by[:3])), strict=True))
    return images, dict(zip(MODELS, (1, *by.calls), strict=True))


class Data:
    """What models are compared with, from the stores."""

    def __init__(self, run):
        self.clean = quantised(run.store("prepare").all())
        train, heldout = run.store("corrupt/train"), run.store("corrupt/heldout")
        self.noisy, self.heldout = quantised(train.all()), quantised(heldout.all())
        self.levels, self.numbers = train.sigma.numpy(), train.index.numpy()


@pytest.fixture(scope="module")
def data(tiny_run):
    return Data(tiny_run)


@pytest.fixture(scope="module")
def models(tiny_run):
    return drawn(tiny_run, 1.5)


@pytest.fixture(scope="module")
def summary(tiny_run):
    return tiny_run.json("summary.json")


def by_features(summary, model, kind):
    return summary[model]["by_features"][f"tiny_features:{kind}"]


@pytest.mark.parametrize("kind", ["fine", "rough"])
@pytest.mark.parametrize("model", MODELS)
def test_distances_are_those_of_images_drawn_from_the_saved_weights(
    model, kind, summary, models, data
):
    images = models[0][model]
    found = by_features(summary, model, kind)
    made = features_of(kind, images)
    clean = features_of(kind, data.clean)
    assert found["frechet"] == pytest.approx(frechet(made, clean), rel=2e-3)
    assert found["kid"] == pytest.approx(kid(made, clean[:COUNT]), rel=2e-3)
    near = features_of(kind, observed(images, data.levels, NOISE))
    expected = frechet(near, features_of(kind, data.noisy))
    assert found["proximal_frechet"] == pytest.approx(expected, rel=2e-3)
    # A single pixel that rounds the other way may move an image over an edge.
    for name, value in shares(made, clean[:COUNT]).items():
        assert found[name] == pytest.approx(value, abs=0.012), name


def test_the_first_space_stands_at_the_top(summary):
    for model in (*MODELS, "noisy_data"):
        own, first = summary[model], by_features(summary, model, "fine")
        assert [*own["by_features"]] == CHANGES["evaluate"]["features"]
        assert own["frechet"] == first["frechet"]
        assert own.get("proximal_frechet") == first.get("proximal_frechet")


def test_evaluations_are_the_calls_that_each_kind_of_image_needs_alone(summary, models):
    assert {name: summary[name]["evaluations"] for name in MODELS} == models[1]
    assert len({*models[1].values()}) == len(MODELS)


def test_the_protocol_says_what_the_numbers_depend_on(summary, data):
    def digest(images):
        shape = repr(images.shape).encode()
        return hashlib.sha256(shape + images.tobytes()).hexdigest()

    protocol = summary["protocol"]
    spaces = CHANGES["evaluate"]["features"]
    assert protocol["features"] == spaces[0]
    assert protocol["extractors"] == {
        name: load_extractor(name, device=CPU).protocol for name in spaces
    }
    expected = {
        "num_samples": COUNT,
        "num_clean": 140,
        "num_noisy": 100,
        "clean_sha256": digest(data.clean),
        "noisy_sha256": digest(data.noisy),
        "seed": 5,
        "sigma": SIGMA,
        "sigma_hat": ASSUMED,
        "operator": {"kind": "identity"},
        "without_frechet": None,
    }
    assert {name: protocol[name] for name in expected} == expected
    assert "8 bit" in protocol["pixels"]
    assert protocol["notes"]["tiny_features:fine"] == []
    (note,) = protocol["notes"]["fashion-classifier"]
    assert "60 images are too few for 64 features" in note


def test_the_summary_names_the_generators_weights(tiny_run, summary):
    weights = tiny_run.paths.artifact("distill") / "generator" / "weights.safetensors"
    content = weights.read_bytes()
    assert summary["generator"]["weights_sha256"] == hashlib.sha256(content).hexdigest()


def test_the_study_of_the_choice(tiny_run, summary, data):
    """The distances that chose, and all moments against clean images, in the first space."""
    trajectory = tiny_run.table("distill", "trajectory.csv")
    rows = tiny_run.table("evaluate", "selection.csv")
    clean = features_of("fine", data.clean)
    for moment, row in zip(trajectory, rows, strict=True):
        images = tiny_run.trajectory(int(moment["images"])).numpy()
        assert row["images"] == moment["images"]
        assert row["heldout_proximal_frechet"] == moment["proximal_frechet"]
        distance = frechet(features_of("fine", images), clean)
        assert float(row["frechet"]) == pytest.approx(distance, rel=1e-4)
    values = [{name: float(value) for name, value in row.items()} for row in rows]
    selection = summary["selection"]
    assert selection["checkpoints"] == len(rows)
    held = "heldout_proximal_frechet"
    best = min(values, key=lambda row: row[held])
    limit = best[held] + best[f"{held}_standard_error"]
    assert selection["chosen"] == [row for row in values if row[held] <= limit][-1]
    assert selection["oracle"] == min(values, key=lambda row: row["frechet"])
    assert selection["last"] == values[-1]
    columns = [[row[c] for row in values] for c in ("heldout_proximal_frechet", "frechet")]
    for name, first in (("spearman", 0), ("spearman_later_half", len(values) // 2)):
        ranks = [rankdata(column[first:]) for column in columns]
        assert selection[name] == pytest.approx(np.corrcoef(*ranks)[0, 1])


class KnownDistances:
    """A feature space in which images are as far away as their first pixel says."""

    name = "known"

    def to_clean(self, images):
        return float(images.flatten()[0])

    def to_heldout(self, images):
        return {"frechet": 7.0, "frechet_standard_error": 0.5}


def test_the_order_of_the_later_half_is_told_apart_from_that_of_all(tmp_path):
    paths = Paths(tmp_path)
    artifact, clean = paths.artifact("distill"), [5, 4, 1, 2, 3]
    rows = [(8 * n, "", 5 - n, 0.1) for n in range(5)]
    header = ["images", "gap", "proximal_frechet", "proximal_frechet_standard_error"]
    (artifact / "trajectory").mkdir(parents=True)
    paths.report("evaluate").mkdir(parents=True)
    write_csv(artifact / "trajectory.csv", header, rows)
    for (seen, *_), value in zip(rows, clean, strict=True):
        images = torch.full((3, *SHAPE), value, dtype=torch.uint8)
        save_file({"images": images}, artifact / "trajectory" / f"{seen:09d}.safetensors")
    space = KnownDistances()
    found = evaluate._selection(params_with(), paths, space, space, images)
    assert found["spearman_later_half"] == pytest.approx(-1)
    assert found["spearman"] == pytest.approx(0.6)
    assert (found["chosen"]["images"], found["last"]["images"]) == (32, 32)
    assert found["oracle"]["images"] == 16


def test_the_chosen_generator_is_measured_again_with_other_latents_and_noise(
    tiny_run, summary, models, data
):
    levels = tiny_run.store("corrupt/heldout").sigma.numpy()
    images = observed(models[0]["generator"][:50], levels, NOISE)
    made, heldout = (features_of("rough", x) for x in (images, data.heldout))
    again = summary["selection"]["again"]
    distance = again["heldout_proximal_frechet"]
    assert distance == pytest.approx(frechet(made, heldout), rel=2e-3)
    error, _ = jackknifed(made, heldout)
    found = again["heldout_proximal_frechet_standard_error"]
    assert found == pytest.approx(error, rel=0.25)


def cells(path, labels, columns):
    """The images of each labelled row of a picture, once the labels are found to be there."""
    picture = Image.open(path).convert("L")
    shown = np.asarray(picture)
    strip = Image.new("RGB", (150, shown.shape[0]), "white")
    for number, label in enumerate(labels):
        ImageDraw.Draw(strip).text(
            (6, number * 66 + 33),
            label,
            "black",
            font=ImageFont.load_default(size=15),
            anchor="lm",
        )
    np.testing.assert_array_equal(shown[:, :150], np.asarray(strip.convert("L")))
    assert shown.shape == (len(labels) * 66 + 2, 150 + columns * 66 + 2)
    return {
        label: np.stack([
            shown[2 + 66 * i : 66 + 66 * i : 8, 152 + 66 * j : 216 + 66 * j : 8]
            for j in range(columns)
        ]).astype(int)
        for i, label in enumerate(labels)
    }  # fmt: skip


def assert_shown(found, images):
    off = np.abs(found - images[: len(found), 0])
    assert off.max() <= 1
    assert (off > 0).mean() < 0.01


def denoised(run):
    """What the saved teacher makes of the first noisy images, at the level of each."""
    store = run.store("corrupt/train")
    y, sigma = store.all()[:12], store.sigma[:12]
    with torch.no_grad():
        x = run.teacher().eval()(y, torch.where(sigma > 0, sigma, 1.0))
    return quantised(torch.where(sigma[:, None, None, None] > 0, x, y))


def test_the_comparison_shows_what_its_labels_say(tiny_run, models, data):
    rows = {
        "clean data": data.clean[data.numbers],
        "noisy data": data.noisy,
        "denoised": denoised(tiny_run),
        "teacher, Full": models[0]["teacher_full"],
        "teacher, Truncated": models[0]["teacher_truncated"],
        "Truncated at sigma": models[0]["teacher_truncated_exact"],
        "one step": models[0]["generator"],
    }
    found = cells(tiny_run.paths.report("evaluate") / "comparison.png", [*rows], 12)
    for label, images in rows.items():
        assert_shown(found[label], images)


@pytest.mark.parametrize("model", MODELS)
def test_each_models_picture_shows_its_first_images(tiny_run, models, model):
    path = tiny_run.paths.report("evaluate") / "samples" / f"{model}.png"
    shown = np.asarray(Image.open(path).convert("L")).astype(int)
    found = [shown[2 + 66 * (i // 12) :, 2 + 66 * (i % 12) :][:64:8, :64:8] for i in range(36)]
    assert shown.shape == (3 * 66 + 2, 12 * 66 + 2)
    assert_shown(np.stack(found), models[0][model])


def test_the_progress_shows_the_same_latents_at_each_moment(tiny_run):
    moments = [int(row["images"]) for row in tiny_run.table("distill", "trajectory.csv")]
    labels = {f"{seen:,} images": tiny_run.trajectory(seen).numpy() for seen in moments}
    found = cells(tiny_run.paths.report("evaluate") / "progress.png", [*labels], 12)
    for label, images in labels.items():
        np.testing.assert_array_equal(found[label], images[:12, 0])


def test_neighbours_are_generated_images_above_an_observation_and_its_clean_image(
    tiny_run, models, data
):
    labels = ["one step", "nearest noisy", "the same, clean"]
    found = cells(tiny_run.paths.report("evaluate") / "neighbours.png", labels, 12)
    made = models[0]["generator"][:, 0].astype(int)
    for own, noisy, clean in zip(*found.values(), strict=True):
        assert np.abs(made - own).max((1, 2)).min() <= 1
        (at,) = np.flatnonzero((data.noisy[:, 0] == noisy).all((1, 2)))
        np.testing.assert_array_equal(clean, data.clean[data.numbers[at], 0])

"""The teacher's own features, in which a generator is chosen by default."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import linalg, stats
from stage_helpers import random_images
from tiny_stages import SELECTION, run, tiny

from dsd.features.extractor import Extractor, extract
from dsd.features.teacher import LEAST_SIGMA, TeacherFeatures, load_teacher_features
from dsd.model.checkpoint import build_denoiser, load_denoiser
from dsd.model.config import UNetConfig
from dsd.model.denoiser import coefficients
from dsd.model.generator import make_latents
from dsd.operators.config import MaskOperator
from dsd.operators.operator import Operator
from dsd.storage.image_store import ImageStore
from dsd.utils.images import from_uint8, to_uint8
from dsd.utils.random import derive_seed
from pipeline.stage_io.tables import read_csv
from pipeline.stages import distill, evaluate

CPU = torch.device("cpu")
NETWORK = UNetConfig(
    kind="unet",
    patch_size=1, model_channels=8, channel_mult=[1, 2, 3], num_blocks=2,
    attention_resolutions=[4], dropout=0.1,
    sigma_data=0.5,
)  # fmt: skip
TEACHER = {"distill": {"selection": {**SELECTION, "features": "teacher"}}}


def pixels(channels=1, count=5):
    return torch.from_numpy(random_images(count, channels, 8, 8))


def features_of(denoiser, sigma=0.3):
    return TeacherFeatures(denoiser.eval(), sigma, weights="0123456789abcdefgh")


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_they_are_means_over_space_of_each_resolution_of_the_encoder_and_of_the_bottleneck(
    channels,
):
    denoiser = build_denoiser(NETWORK, (channels, 8, 8), seed=1)
    x, seen = pixels(channels), []
    found = extract(features_of(denoiser), x, batch_size=2)
    hooks = [
        block.register_forward_hook(lambda *call: seen.append(call[-1]))
        for block in (*denoiser.network.encoder, denoiser.network.middle[-1])
    ]
    with torch.no_grad():  # the denoiser itself passes the same encoder
        denoiser(x / 127.5 - 1, torch.full((5,), 0.3))
    for hook in hooks:
        hook.remove()
    # Two blocks; a halving and two blocks, twice.
    wanted = [seen[at].double().mean((2, 3)) for at in (1, 4, 7, 8)]
    assert [h.shape[1] for h in wanted] == [8, 16, 24, 24]
    torch.testing.assert_close(found, torch.cat(wanted, 1), rtol=1e-4, atol=1e-6)


def test_they_depend_on_the_level_and_on_the_weights_and_say_so():
    one, other = (build_denoiser(NETWORK, (1, 8, 8), seed=seed) for seed in (1, 2))
    x = pixels()
    first, level, weights = features_of(one), features_of(one, 0.6), features_of(other)
    assert isinstance(first, Extractor)
    assert first.protocol.startswith("teacher 0123456789abcdef, ")
    assert (first.protocol[-9:], level.protocol[-9:]) == ("level 0.3", "level 0.6")
    for different in (level, weights):
        assert (first(x) - different(x)).abs().max() > 1e-3


def test_images_without_noise_are_encoded_at_the_lowest_level():
    denoiser = build_denoiser(NETWORK, (1, 8, 8), seed=1)
    found = features_of(denoiser, 0.0)(pixels())
    assert found.isfinite().all()
    assert torch.equal(found, features_of(denoiser, LEAST_SIGMA)(pixels()))


def test_a_teacher_of_masked_images_sees_what_its_own_view_shows():
    operator = Operator(MaskOperator(kind="mask", keep_prob=0.6, further_mask_prob=0.1), (1, 8, 8))
    denoiser = build_denoiser(NETWORK, (1, 8, 8), seed=1, views=operator.views).eval()
    x, level = from_uint8(pixels()), torch.full((5,), 0.3)
    shown = denoiser.view.expand(5, -1, -1, -1)
    scale = coefficients(level, 0.5).c_in[:, None, None, None]
    inputs = torch.cat([scale * x * shown, shown.float()], 1)
    wanted = denoiser.network.encode(inputs, level.log() / 4)
    found = features_of(denoiser)(pixels())
    torch.testing.assert_close(found, torch.cat([h.mean((2, 3)) for h in wanted], 1))
    hidden = torch.where(shown, x, 1.0)
    assert torch.equal(found, features_of(denoiser)(to_uint8(hidden)))


def frechet(a, b):
    """By the formula of Dowson and Landau, with scipy's square root of a matrix."""
    (mean, cov), (other, others) = [(x.mean(0), np.cov(x.T)) for x in (a, b)]
    root = linalg.sqrtm(cov @ others).real
    return ((mean - other) ** 2).sum() + np.trace(cov + others - 2 * root)


def noisy(images, levels, seed):
    """Saved images with one noise each, as they would be saved."""
    out = []
    for at, image in enumerate(images.numpy()):
        source = torch.Generator().manual_seed(derive_seed(seed, "renoise", at))
        eps = torch.randn(image.shape, generator=source).numpy()
        y = image / 127.5 - 1 + levels[at % len(levels)].item() * eps
        out.append(np.rint((np.clip(y, -1, 1) + 1) * 127.5).astype(np.uint8))
    return torch.from_numpy(np.stack(out))


def test_the_choice_and_its_second_measurement_recomputed(copied):
    shutil.rmtree(copied.artifact("distill"))
    params = tiny(**TEACHER, evaluate={"features": ["fashion-classifier", "teacher"]})
    for folder in (copied.report("distill"), copied.report("evaluate")):
        shutil.rmtree(folder)
    run(distill, params, copied)
    run(evaluate, params, copied)
    heldout = ImageStore.open(copied.artifact("corrupt") / "heldout")
    teacher = load_denoiser(copied.artifact("pretrain"))
    level = float(heldout.sigma.max())

    def features(images):
        with torch.no_grad():
            x = torch.from_numpy(images.numpy() / np.float32(127.5) - 1).float()
            means = teacher.encode(x, torch.full((len(x),), level))
        return np.concatenate([h.double().numpy().mean((2, 3)) for h in means], 1)

    reference = features(to_uint8(heldout.all()))
    rows = read_csv(copied.artifact("distill") / "trajectory.csv")
    values = []
    for row in rows:
        file = f"trajectory/{int(row['images']):09d}.safetensors"
        images = load_file(copied.artifact("distill") / file)["images"]
        seen = noisy(images, heldout.sigma, derive_seed(0, "selection noise"))
        values.append(frechet(features(seen), reference))
    found = [float(row["proximal_frechet"]) for row in rows]
    assert found == pytest.approx(values, rel=1e-3)
    assert len({*found}) == len(found)

    summary = json.loads(copied.summary.read_text())
    selection = summary["selection"]
    study = read_csv(copied.report("evaluate") / "selection.csv")
    held = "heldout_proximal_frechet"
    assert [*study[0]] == ["images", held, f"{held}_standard_error", "frechet"]
    clean = [float(row["frechet"]) for row in study]
    errors = [float(row["proximal_frechet_standard_error"]) for row in rows]
    limit = min(found) + errors[int(np.argmin(found))]
    best = max(at for at, value in enumerate(found) if value <= limit)
    assert selection["features"] == "teacher"
    assert selection["checkpoints"] == len(rows) == 4
    assert selection["chosen"] == {k: float(v) for k, v in study[best].items()}
    assert selection["last"] == {k: float(v) for k, v in study[-1].items()}
    assert selection["oracle"]["frechet"] == min(clean)
    assert selection["spearman"] == pytest.approx(stats.spearmanr(found, clean).statistic)
    later = stats.spearmanr(found[2:], clean[2:]).statistic
    assert selection["spearman_later_half"] == pytest.approx(later)

    generator = load_denoiser(copied.artifact("distill") / "generator")
    z = make_latents(70, (1, 8, 8), seed=derive_seed(0, "evaluation latents"))
    with torch.no_grad():
        images = to_uint8(generator(2.5 * z, torch.full((70,), 2.5)))
    seen = features(noisy(images, heldout.sigma, derive_seed(0, "evaluation noise")))
    again = selection["again"]
    value = frechet(seen, reference)
    assert again["heldout_proximal_frechet"] == pytest.approx(value, rel=1e-3)
    # Infinitesimal jackknife, by leaving each image out in turn.
    left_out = [frechet(np.delete(seen, at, 0), reference) for at in range(len(seen))]
    error = np.std(left_out) * np.sqrt(len(seen) - 1)
    assert again["heldout_proximal_frechet_standard_error"] == pytest.approx(error, rel=0.2)
    # The teacher knows nothing of clean images.
    measured = summary["generator"]["by_features"]["teacher"]
    assert measured["frechet"] is None
    train = ImageStore.open(copied.artifact("corrupt") / "train")
    seen = features(noisy(images, train.sigma, derive_seed(0, "evaluation noise")))
    value = frechet(seen, features(to_uint8(train.all())))
    assert measured["proximal_frechet"] == pytest.approx(value, rel=1e-3)


def test_features_of_a_saved_teacher_name_its_weights(trained):
    folder = trained.artifact("pretrain")
    found = load_teacher_features(folder, sigma=0.5, device=CPU)
    written = json.loads((folder / "model.json").read_text())["weights_sha256"]
    assert found.protocol.startswith(f"teacher {written[:16]},")
    assert found.device == CPU

"""What the stage pretrain writes and trains on, recomputed from its inputs."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from tiny_run import (
    ASSUMED,
    NUM_READINGS,
    PIXEL_UNITS,
    SHAPE,
    adam_in_numpy,
    averages,
    flat,
    step_size,
)
from twins import karras_grid, omni_weight, sample

from dsd.model.checkpoint import build_denoiser
from dsd.utils.philox import noise_of
from dsd.utils.random import EpochSampler, derive_seed

EDGES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
BATCH, STEPS = 8, 26


def rows(run):
    """For each image of each step: its state, level, denoised image and likeliest observation.

    Returns:
        x, sigma, D(x; sigma); all observations; and the number of that behind each state.
    """
    calls = run.calls("pretrain")
    assert [len(call.x) for call in calls] == [BATCH] * STEPS
    x, sigma, out = (
        torch.cat(part).double().numpy() for part in list(zip(*calls, strict=True))[1:4]
    )
    y = run.store("corrupt/train").all().double().numpy()
    levels = run.store("corrupt/train").sigma.double().numpy()
    squares = np.square(x[:, None] - y[None]).sum((2, 3, 4))
    with np.errstate(invalid="ignore", divide="ignore"):
        added = sigma[:, None] ** 2 - levels[None] ** 2
        unlikely = squares / added + x[0].size * np.log(added)
    return x, sigma, out, y, np.where(added > 0, unlikely, np.inf).argmin(1)


def test_the_saved_teacher_is_the_average_of_the_trained_weights(tiny_run):
    updates = tiny_run.updates("pretrain")
    assert len(updates) == STEPS
    average = averages(updates, updates[0].before, tiny_run.params.pretrain)[-1]
    saved = load_file(tiny_run.paths.artifact("pretrain") / "weights.safetensors")
    names = [name for name, _ in tiny_run.teacher().named_parameters()]
    for name, expected, raw in zip(names, average, updates[-1].after, strict=True):
        np.testing.assert_allclose(saved[name], expected, rtol=1e-4, atol=1e-6)
        assert np.abs(saved[name] - raw.numpy()).max() > 1e-3


def test_the_model_says_what_was_trained(tiny_run):
    folder = tiny_run.paths.artifact("pretrain")
    spec = json.loads((folder / "model.json").read_text())
    assert spec == {
        "network": tiny_run.params.network.model_dump(),
        "operator": {"kind": "identity"},
        "shape": list(SHAPE),
        "sigma_init": None,
        "weights_sha256": hashlib.sha256(
            (folder / "weights.safetensors").read_bytes()
        ).hexdigest(),
        "units": PIXEL_UNITS,
    }


def test_weights_begin_as_the_seed_says_and_move_as_adam_does(tiny_run):
    """Without decay of the weights, with (0.9, 0.999), warm-up and then a constant step size."""
    updates, config = tiny_run.updates("pretrain"), tiny_run.params.pretrain
    fresh = build_denoiser(tiny_run.params.network, SHAPE, seed=derive_seed(5, "weights"))
    assert all(map(torch.equal, updates[0].before, fresh.parameters()))
    sizes = [step_size(config.learning_rate, step * BATCH, config, STEPS) for step in range(STEPS)]
    assert [update.group["lr"] for update in updates] == pytest.approx(sizes)
    assert len({*sizes}) == 4
    for update, weights in zip(updates, adam_in_numpy(updates, (0.9, 0.999), sizes), strict=True):
        np.testing.assert_allclose(flat(update.after), weights, rtol=1e-4, atol=2e-6)


def test_every_epoch_visits_each_observation_once_in_an_order_of_its_own(tiny_run):
    *_, y, numbers = rows(tiny_run)
    first, second = numbers[:100], numbers[100:200]
    assert len(y) == 100
    assert sorted(first) == sorted(second) == list(range(100))
    assert (first == second).mean() < 0.1
    order = EpochSampler(5, 100, torch.device("cpu"))
    assert list(numbers[:BATCH]) == order.batch(0, BATCH).tolist()


def test_it_reads_the_training_observations_and_nothing_else(tiny_run):
    store = tiny_run.store("corrupt/train")
    read = [("corrupt/train", store.fingerprint, 100, SHAPE)]
    assert tiny_run.logs["pretrain"].datasets == read


def test_observations_get_fresh_white_noise_up_to_the_drawn_level(tiny_run):
    x, sigma, _, y, numbers = rows(tiny_run)
    sigma_y = tiny_run.store("corrupt/train").sigma.numpy()[numbers]
    assert {*np.unique(sigma_y)} == {0, np.float32(ASSUMED)}
    assert (sigma >= sigma_y).all()
    added = np.sqrt(sigma**2 - sigma_y**2)
    n = ((x - y[numbers]) / added[:, None, None, None]).reshape(len(x), 64)
    # 13,312 numbers: the standard error of the mean square is 0.012.
    assert np.square(n).mean() == pytest.approx(1, abs=0.06)
    assert n.mean() == pytest.approx(0, abs=0.05)
    # Within an image, between images of a step and between steps.
    among = np.corrcoef(n) - np.eye(len(n))
    assert np.abs(among).max() < 0.75
    assert np.abs(np.corrcoef(n.T) - np.eye(64)).max() < 0.45
    # The added levels are log-normal.
    law = tiny_run.params.pretrain.noise
    normal = (np.log(added) - law.P_mean) / law.P_std
    assert normal.mean() == pytest.approx(0, abs=0.25)
    assert normal.std() == pytest.approx(1, abs=0.2)
    assert len({*sigma}) == len(sigma)


def test_the_teacher_trains_with_dropout(tiny_run):
    """What it computed differs from what its weights compute without dropout, each time."""
    updates, calls = tiny_run.updates("pretrain"), tiny_run.calls("pretrain")
    for number in (5, 20):
        quiet = tiny_run.generator_of(updates[number].before).denoiser
        with torch.no_grad():
            without = quiet(calls[number].x, calls[number].sigma)
        assert (without - calls[number].out).abs().max() > 1e-3


def test_the_curves_are_the_loss_since_the_reading_before(tiny_run):
    x, sigma, out, y, numbers = rows(tiny_run)
    sigma_y = tiny_run.store("corrupt/train").sigma.double().numpy()[numbers]
    a = ((sigma**2 - sigma_y**2) / sigma**2)[:, None, None, None]
    h = a * out + (1 - a) * x
    loss = omni_weight(sigma, sigma_y, 0.6) * np.square(h - y[numbers]).mean((1, 2, 3))
    ends = [*range(4, STEPS, STEPS // NUM_READINGS), STEPS]
    means, by_level = [], []
    for start, end in zip([0, *ends], ends, strict=False):
        part = slice(start * BATCH, end * BATCH)
        means.append(loss[part].mean())
        for low, high in zip((0, *EDGES), (*EDGES, np.inf), strict=True):
            some = (sigma[part] > low) & (sigma[part] <= high)
            name = f"<={high:g}" if high < np.inf else f">{low:g}"
            if some.any():
                by_level.append((end * BATCH, name, loss[part][some].mean()))
    curve = tiny_run.table("pretrain", "loss.csv")
    assert [int(row["images"]) for row in curve] == [end * BATCH for end in ends]
    assert [float(row["loss"]) for row in curve] == pytest.approx(means, rel=1e-3)
    levels = tiny_run.table("pretrain", "loss_by_level.csv")
    assert [(int(row["images"]), row["sigma"]) for row in levels] == [b[:2] for b in by_level]
    assert [float(r["loss"]) for r in levels] == pytest.approx([b[2] for b in by_level], rel=1e-3)
    logged = tiny_run.logs["pretrain"].values
    assert logged == [(int(row["images"]), {"loss": float(row["loss"])}) for row in curve]


def test_the_last_picture_shows_what_the_saved_teacher_draws_down_to_the_noise(tiny_run):
    folder = tiny_run.paths.report("pretrain") / "samples"
    assert [f.name for f in sorted(folder.iterdir())] == ["000000104.png", "000000208.png"]
    teacher = tiny_run.teacher().eval()

    def denoise(x, level):
        x = torch.from_numpy(x).float()
        with torch.no_grad():
            return teacher(x, torch.full((len(x),), level)).double().numpy()

    z = noise_of(derive_seed(5, "pretrain pictures"), np.arange(32), SHAPE).astype(float)
    drawn = sample(denoise, z, karras_grid(18, 0.002, 80.0, 7.0), ASSUMED, "heun").truncated
    expected = np.clip(np.floor(drawn * 127.5 + 128), 0, 255)
    shown = np.asarray(Image.open(folder / "000000208.png").convert("L")).astype(int)
    found = [
        shown[2 + 66 * (i // 8) : 66 + 66 * (i // 8) : 8, 2 + 66 * (i % 8) : 66 + 66 * (i % 8) : 8]
        for i in range(32)
    ]
    assert np.abs(np.stack(found) - expected[:, 0]).max() <= 1

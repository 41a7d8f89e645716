"""What the stage distill writes, chooses and trains on, recomputed from its inputs."""

import hashlib
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from metric_twins import frechet, observed, quantised
from PIL import Image
from safetensors.numpy import load_file
from stage_helpers import files_of
from tiny_features import features_of
from tiny_run import PIXEL_UNITS, SHAPE, Call, adam_in_numpy, averages, flat, step_size
from twins import generator_level

from dsd.utils.philox import noise_of
from dsd.utils.random import derive_seed, step_generator

BATCH, STEPS, FAKE_STEPS = 8, 20, 2
MOMENTS = [0, 24, 48, 72, 96, 120, 144, 160]
EDGES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


def trajectory(run):
    return run.table("distill", "trajectory.csv")


def distances(run):
    return [float(row["proximal_frechet"]) for row in trajectory(run)]


def name_of(images_seen):
    return f"{images_seen:09d}"


class Step:
    """The calls of one step: of the generator, of the fake as it learns, and of both judges."""

    def __init__(self):
        self.generated, self.learned, self.judged = [], [], []


def steps_of(run):
    """Calls by step; which denoiser is which follows from levels, weights and order."""
    saved = list(run.teacher().parameters())
    (fake,) = run.updates("distill", 0)[0].optimizer.param_groups
    steps, events = [Step()], run.events["distill"]
    generator = run.updates("distill", 1)[0].optimizer
    for event in events:
        if not isinstance(event, Call):
            if event.optimizer is generator:
                steps.append(Step())
        elif not event.inference:
            first = next(event.denoiser.parameters())
            if (event.sigma == np.float32(run.params.distill.sigma_init)).all():
                steps[-1].generated.append(event)
            elif first is fake["params"][0]:
                steps[-1].learned.append(event)
            else:
                assert all(map(torch.equal, event.denoiser.parameters(), saved))
                steps[-1].judged.append((event, None))
    for step in steps[:-1]:
        ((teacher, _),) = step.judged
        (judge,) = (call for call in step.learned if torch.equal(call.x, teacher.x))
        assert torch.equal(judge.sigma, teacher.sigma)
        step.judged = teacher, judge
        step.learned = [call for call in step.learned if call is not judge]
    return steps[:-1]


def noise_in(call, generated):
    """The noise of a call's states in units of their levels, and the images behind it."""
    candidates = [
        (call.x - made.out.clamp(-1, 1)) / call.sigma[:, None, None, None] for made in generated
    ]
    least = min(candidates, key=lambda noise: float(noise.square().sum()))
    return least.flatten(1).double().numpy()


def test_all_networks_begin_as_the_teacher_and_move_as_adam_does(tiny_run):
    """With the betas of the parameters and each with the step size that is its own."""
    config = tiny_run.params.distill
    saved = list(tiny_run.teacher().parameters())
    for number, (peak, each) in enumerate(
        ((config.learning_rate_fake, FAKE_STEPS), (config.learning_rate, 1))
    ):
        updates = tiny_run.updates("distill", number)
        assert len(updates) == each * STEPS
        assert all(map(torch.equal, updates[0].before, saved))
        sizes = [
            step_size(peak, step * BATCH, config, STEPS)
            for step in range(STEPS)
            for _ in range(each)
        ]
        assert [update.group["lr"] for update in updates] == pytest.approx(sizes)
        for update, weights in zip(
            updates, adam_in_numpy(updates, config.betas, sizes), strict=True
        ):
            np.testing.assert_allclose(flat(update.after), weights, rtol=1e-4, atol=2e-6)
    assert all(map(torch.equal, tiny_run.teacher().parameters(), saved))


def test_what_is_measured_is_the_averaged_generator_without_dropout(tiny_run):
    """At each moment, from latents of the selection; neither the raw nor a later one."""
    updates = tiny_run.updates("distill", 1)
    average = averages(updates, updates[0].before, tiny_run.params.distill)
    weights = {0: updates[0].before}
    weights |= {(k + 1) * BATCH: average[k] for k in range(STEPS)}
    z = torch.from_numpy(noise_of(derive_seed(5, "selection latents"), np.arange(50), SHAPE))
    folder = tiny_run.paths.artifact("distill") / "trajectory"
    assert [file.stem for file in sorted(folder.iterdir())] == [name_of(n) for n in MOMENTS]
    for seen in MOMENTS:
        generator = tiny_run.generator_of(weights[seen])
        with torch.no_grad():
            expected = quantised(generator.denoiser(1.7 * z, torch.full((50,), 1.7)))
        found = tiny_run.trajectory(seen).numpy()
        assert found.shape == (50, *SHAPE)
        assert found.dtype == np.uint8
        off = np.abs(found.astype(int) - expected)
        assert off.max() <= 1
        assert (off > 0).mean() < 0.01
    raw = tiny_run.generator_of(updates[2].after)
    with torch.no_grad():
        other = quantised(raw(z)).astype(int)
    assert np.abs(other - tiny_run.trajectory(24).numpy()).max() > 1
    evaluation = noise_of(derive_seed(5, "evaluation latents"), np.arange(50), SHAPE)
    assert np.abs(np.corrcoef(z.flatten(), evaluation.ravel())[0, 1]) < 0.08


def test_the_trajectory_is_the_distance_to_the_held_out_observations(tiny_run):
    heldout = tiny_run.store("corrupt/heldout")
    reference = features_of("rough", quantised(heldout.all()))
    seed, levels = derive_seed(5, "selection noise"), heldout.sigma.numpy()
    expected = [
        frechet(
            features_of("rough", observed(tiny_run.trajectory(seen).numpy(), levels, seed)),
            reference,
        )
        for seen in MOMENTS
    ]
    assert [int(row["images"]) for row in trajectory(tiny_run)] == MOMENTS
    assert distances(tiny_run) == pytest.approx(expected, rel=1e-4)
    assert len({*expected}) == len(MOMENTS)


def test_the_generator_is_the_last_checkpoint_within_an_error_of_the_least_distance(tiny_run):
    """And the best beside it is kept, and the last."""
    found = distances(tiny_run)
    errors = [float(row["proximal_frechet_standard_error"]) for row in trajectory(tiny_run)]
    order = [int(at) for at in np.argsort(found)]
    limit = found[order[0]] + errors[order[0]]
    at = max(number for number, distance in enumerate(found) if distance <= limit)
    assert 0 < at < len(MOMENTS) - 1, "this run can tell first, chosen and last apart"
    artifact = tiny_run.paths.artifact("distill")
    best_other = next(number for number in order if number != at)
    kept = {name_of(MOMENTS[number]) for number in (at, best_other, -1)}
    assert {folder.name for folder in (artifact / "checkpoints").iterdir()} == kept
    chosen = MOMENTS[at]
    assert files_of(artifact / "generator") == files_of(artifact / "checkpoints" / name_of(chosen))
    assert any(f"after {chosen} images" in line for line in tiny_run.logs["distill"].lines)


def test_each_checkpoint_holds_the_average_of_its_moment(tiny_run):
    updates = tiny_run.updates("distill", 1)
    average = averages(updates, updates[0].before, tiny_run.params.distill)
    names = [name for name, _ in tiny_run.teacher().named_parameters()]
    for folder in (tiny_run.paths.artifact("distill") / "checkpoints").iterdir():
        step = int(folder.name) // BATCH
        weights = average[step - 1] if step else updates[0].before
        content = (folder / "weights.safetensors").read_bytes()
        saved = load_file(folder / "weights.safetensors")
        for name, expected in zip(names, weights, strict=True):
            np.testing.assert_allclose(saved[name], expected, rtol=1e-4, atol=1e-6)
        assert json.loads((folder / "model.json").read_text()) == {
            "network": tiny_run.params.network.model_dump(),
            "operator": {"kind": "identity"},
            "shape": list(SHAPE),
            "sigma_init": 1.7,
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "units": PIXEL_UNITS,
        }


def test_the_gap_is_the_difference_of_both_judges_since_the_moment_before(tiny_run):
    steps = steps_of(tiny_run)
    gaps = [(t.out - f.out).double().square().flatten(1).mean(1) for t, f in map(judges, steps)]
    levels = [teacher.sigma.numpy() for teacher, _ in map(judges, steps)]
    rows = trajectory(tiny_run)
    assert rows[0]["gap"] == ""
    means, by_level = [], []
    for before, now in pairwise(MOMENTS):
        part = slice(before // BATCH, now // BATCH)
        gap, sigma = torch.cat(gaps[part]).numpy(), np.concatenate(levels[part])
        means.append(gap.mean())
        for low, high in zip((0, *EDGES), (*EDGES, np.inf), strict=True):
            some = (sigma > low) & (sigma <= high)
            name = f"<={high:g}" if high < np.inf else f">{low:g}"
            if some.any():
                by_level.append((now, name, gap[some].mean()))
    assert [float(row["gap"]) for row in rows[1:]] == pytest.approx(means, rel=1e-4)
    found = tiny_run.table("distill", "gap_by_level.csv")
    assert [(int(row["images"]), row["sigma"]) for row in found] == [b[:2] for b in by_level]
    assert [float(r["gap"]) for r in found] == pytest.approx([b[2] for b in by_level], rel=1e-4)


def judges(step):
    return step.judged


def test_the_judging_teacher_is_the_saved_one_without_dropout(tiny_run):
    quiet = tiny_run.teacher().eval()
    for teacher, _ in map(judges, steps_of(tiny_run)):
        with torch.no_grad():
            torch.testing.assert_close(quiet(teacher.x, teacher.sigma), teacher.out)


def test_the_fake_learns_with_dropout(tiny_run):
    updates, steps = tiny_run.updates("distill", 0), steps_of(tiny_run)
    for number in (3, 15):
        quiet = tiny_run.generator_of(updates[FAKE_STEPS * number].before).denoiser
        call = steps[number].learned[0]
        with torch.no_grad():
            assert (quiet(call.x, call.sigma) - call.out).abs().max() > 1e-3


def test_latents_are_fresh_and_normal(tiny_run):
    """Of each step; those of further steps of the fake are others than the first's."""
    z = []
    for step in steps_of(tiny_run):
        different = {call.x.numpy().tobytes(): call.x for call in step.generated}
        assert len(different) >= FAKE_STEPS
        z += [x / 1.7 for x in different.values()]
    z = torch.cat(z).flatten(1).double().numpy()
    assert np.square(z).mean() == pytest.approx(1, abs=0.05)
    random = step_generator(5, "distill", 0, torch.device("cpu"))
    first = torch.randn(BATCH, 64, generator=random).numpy()
    assert np.abs(z[:BATCH] - first).max() < 1e-5
    assert np.abs(np.corrcoef(z) - np.eye(len(z))).max() < 0.75


def test_the_fake_learns_from_images_observed_and_diffused_with_independent_noise(tiny_run):
    """Variances add up: the level that the fake is given is that of all noise in its input."""
    noise, levels, beside = [], [], []
    for step in steps_of(tiny_run):
        assert len(step.learned) == FAKE_STEPS
        judged = noise_in(step.judged[0], step.generated)
        for number, call in enumerate(step.learned):
            noise.append(noise_in(call, step.generated))
            levels.append(call.sigma.numpy())
            if number == 0:
                beside.append((noise[-1] * judged).mean())
    noise, levels = np.concatenate(noise), np.concatenate(levels)
    # 20,480 numbers: the standard error of the mean square is 0.01.
    assert np.square(noise).mean() == pytest.approx(1, abs=0.04)
    low = levels < 0.7  # where both noises count alike
    assert low.sum() > 50
    assert np.square(noise[low]).mean() == pytest.approx(1, abs=0.08)
    assert np.abs(np.corrcoef(noise) - np.eye(len(noise))).max() < 0.75
    assert np.mean(beside) == pytest.approx(0, abs=0.05)
    # A quarter of the observations is clean, and only images like these reach levels below.
    assert 0.05 < (levels < 0.45).mean() < 0.25


def test_judges_see_images_at_levels_of_the_generators_law(tiny_run):
    steps = steps_of(tiny_run)
    noise = np.concatenate([noise_in(step.judged[0], step.generated) for step in steps])
    levels = np.concatenate([step.judged[0].sigma.numpy() for step in steps])
    assert np.square(noise).mean() == pytest.approx(1, abs=0.06)
    assert np.abs(np.corrcoef(noise) - np.eye(len(noise))).max() < 0.75
    law = tiny_run.params.distill.noise
    ends = [generator_level(r, law.sigma_min, law.sigma_max, law.rho) for r in (0.0, 0.7)]
    roots = levels ** (1 / 5)
    share = (roots - ends[0] ** (1 / 5)) / (ends[1] ** (1 / 5) - ends[0] ** (1 / 5))
    assert share.min() >= -1e-6
    assert share.max() <= 1 + 1e-6
    assert share.mean() == pytest.approx(0.5, abs=0.08)
    assert share.std() == pytest.approx(np.sqrt(1 / 12), abs=0.05)


def test_the_pictures_show_the_first_images_of_their_moments(tiny_run):
    folder = tiny_run.paths.report("distill") / "samples"
    assert [file.stem for file in sorted(folder.iterdir())] == [name_of(n) for n in MOMENTS]
    for seen in MOMENTS:
        shown = np.asarray(Image.open(folder / f"{name_of(seen)}.png").convert("L"))
        assert shown.shape == (4 * 66 + 2, 8 * 66 + 2)
        for number in range(32):
            top, left = 2 + 66 * (number // 8), 2 + 66 * (number % 8)
            image = shown[top : top + 64 : 8, left : left + 64 : 8]
            np.testing.assert_array_equal(image, tiny_run.trajectory(seen)[number, 0])


def test_both_copies_of_the_trajectory_are_alike_and_logged(tiny_run):
    tables = [
        (place / "trajectory.csv").read_bytes()
        for place in (tiny_run.paths.artifact("distill"), tiny_run.paths.report("distill"))
    ]
    assert tables[0] == tables[1]
    logged = dict(tiny_run.logs["distill"].values)
    assert [*logged] == MOMENTS
    for row in trajectory(tiny_run):
        values = logged[int(row["images"])]
        assert values["proximal_frechet"] == float(row["proximal_frechet"])
        assert values.get("gap") == (float(row["gap"]) if row["gap"] else None)

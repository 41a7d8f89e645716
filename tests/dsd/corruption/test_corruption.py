import hashlib
import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from stage_helpers import ROOT, files_of, random_images

from dsd.corruption.writer import Noise, Residual, corrupt, split_heldout, write_noisy_store
from dsd.operators.config import IdentityOperator, MaskOperator, OperatorChoice
from dsd.operators.operator import Operator
from dsd.storage.image_store import Block, ImageStore, write_store
from dsd.utils.philox import noise_of

SHAPE = (2, 3, 5)


IDENTITY = IdentityOperator(kind="identity")


def clean_store(folder, count=11, shard_size=4, shape=SHAPE):
    block = Block(random_images(count, *shape))
    write_store(folder, [block], scale=1 / 127.5, offset=-1.0, shard_size=shard_size)
    return folder


def observe(clean, folder, indices, *, workers=1, sigma=0.3, seed=5, add=True, operator=IDENTITY):
    noise = Noise(sigma=sigma, assumed=sigma, seed=seed, add=add)
    return write_noisy_store(
        clean, folder, indices, noise=noise, operator=operator, workers=workers
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
)
def test_the_noise_of_an_image_is_a_function_of_seed_and_number_alone(seed, indices):
    together = noise_of(seed, np.array(indices), SHAPE)
    for row, index in zip(together, indices, strict=True):
        np.testing.assert_array_equal(row, noise_of(seed, np.array([index]), SHAPE)[0])


def test_the_noise_of_all_time():
    """Pins the stream: another NumPy must not change observations that exist."""
    noise = noise_of(7, np.array([0, 3]), (1, 16, 16))
    assert noise.dtype == np.float32
    assert hashlib.sha256(noise.tobytes()).hexdigest() == GOLDEN


GOLDEN = "0cb96e2208c3a28d6b9909a31aea57315725bc19d41fa877acbd6449bd2a497d"


def test_the_noise_is_white_standard_and_normal():
    noise = noise_of(0, np.arange(4000), (64,)).astype(np.float64)
    error = 1 / math.sqrt(noise.size)
    assert abs(noise.mean()) < 4 * error
    assert abs(noise.std() - 1) < 4 * error / math.sqrt(2)
    assert abs((noise**4).mean() - 3) < 4 * error * math.sqrt(96)
    assert abs((noise[1:] * noise[:-1]).mean()) < 4 * error
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 4 * error
    seeds = noise_of(1, np.arange(4000), (64,))
    assert abs((noise * seeds).mean()) < 4 * error


@given(sigma=st.lists(st.floats(0, 10, width=32), min_size=3, max_size=3))
def test_observations_are_x0_plus_sigma_noise_and_not_clipped(sigma):
    x0 = np.full((3, *SHAPE), 0.9, np.float32)
    indices = np.array([4, 0, 9])
    y = corrupt(x0, indices, sigma=np.array(sigma, np.float32), seed=1)
    noise = noise_of(1, indices, SHAPE)
    assert y.dtype == np.float32
    for row, level, eps in zip(y, sigma, noise, strict=True):
        np.testing.assert_array_equal(row, np.float32(0.9) + np.float32(level) * eps)
        assert level < 1 or row.max() > 1


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 200), data=st.data())
def test_the_split_parts_all_images_and_depends_on_seed_and_count_alone(seed, count, data):
    num_heldout = data.draw(st.integers(1, count - 1))
    train, heldout = split_heldout(seed, count, num_heldout)
    assert len(heldout) == num_heldout
    assert sorted([*train, *heldout]) == list(range(count))
    assert all((np.diff(part) > 0).all() for part in (train, heldout))
    np.testing.assert_array_equal(split_heldout(seed, count, num_heldout)[1], heldout)


def test_the_split_is_a_fair_draw():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[split_heldout(seed, 20, 5)[1]] += 1
    assert abs(counts - 500).max() < 5 * math.sqrt(2000 * 0.25 * 0.75)


@settings(max_examples=15)
@given(shard_size=st.integers(1, 12), data=st.data())
def test_any_shard_size_gives_the_same_observations(tmp_path_factory, shard_size, data):
    folder = tmp_path_factory.mktemp("stores")
    numbers = data.draw(st.lists(st.integers(0, 10), min_size=1, unique=True))
    indices = np.array(sorted(numbers))
    found = []
    for name, size in (("one", 100), ("many", shard_size)):
        clean = clean_store(folder / name, shard_size=size)
        observe(clean, folder / f"{name}-noisy", indices)
        found.append(ImageStore.open(folder / f"{name}-noisy"))
    np.testing.assert_array_equal(found[0].all(), found[1].all())
    x0 = ImageStore.open(clean).all().numpy()[indices]
    levels = np.full(len(indices), 0.3, np.float32)
    np.testing.assert_array_equal(found[1].all(), corrupt(x0, indices, sigma=levels, seed=5))
    np.testing.assert_array_equal(found[1].index, indices)
    np.testing.assert_array_equal(found[1].sigma, levels)


def test_one_and_eight_workers_write_the_same_bytes(tmp_path):
    clean = clean_store(tmp_path / "clean", count=33)
    indices = np.arange(0, 33, dtype=np.int64)
    alone = observe(clean, tmp_path / "1", indices, workers=1)
    together = observe(clean, tmp_path / "8", indices, workers=8)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "8")
    assert alone == together


def test_the_residual_measures_the_noise(tmp_path):
    clean = clean_store(tmp_path / "clean", count=2000, shard_size=512)
    _, residual = observe(clean, tmp_path / "noisy", np.arange(2000), sigma=0.25)
    assert residual.count == 2000 * 30
    assert residual.std == pytest.approx(0.25, rel=0.02)
    assert residual.psnr == pytest.approx(20 * math.log10(2 / 0.25), abs=0.15)


@pytest.mark.parametrize(
    "operator", [IDENTITY, MaskOperator(kind="mask", keep_prob=0.5, further_mask_prob=0.1)]
)
def test_some_images_get_no_noise_and_their_level_is_known(tmp_path, operator):
    """The others are observed as if all were; the measured level is theirs alone."""
    count = 2000
    clean = clean_store(tmp_path / "clean", count=count, shard_size=512)
    noise = Noise(sigma=0.25, assumed=0.4, seed=5, add=True)
    found = {}
    for fraction in (0.0, 0.3, 0.6):
        mixed = replace(noise, clean_fraction=fraction)
        _, residual = write_noisy_store(
            clean, tmp_path / "mixed", np.arange(count), noise=mixed, operator=operator
        )
        store = ImageStore.open(tmp_path / "mixed")
        found[fraction] = store.sigma == 0, store.all().clone()
        assert set(store.sigma.unique().tolist()) <= {0.0, np.float32(0.4)}
        assert residual.std == pytest.approx(0.25, rel=0.03)
    left_out = {fraction: left_out for fraction, (left_out, _) in found.items()}
    assert not left_out[0.0].any()
    assert left_out[0.6][left_out[0.3]].all()
    for fraction in (0.3, 0.6):
        spread = 4 * math.sqrt(fraction * (1 - fraction) / count)
        assert left_out[fraction].double().mean() == pytest.approx(fraction, abs=spread)
    everything, mixed = found[0.0][1], found[0.6][1]
    assert torch.equal(mixed[~left_out[0.6]], everything[~left_out[0.6]])
    if operator is IDENTITY:
        images = ImageStore.open(clean).all()
        assert torch.equal(mixed[left_out[0.6]], images[left_out[0.6]])


def test_which_images_get_no_noise_is_a_function_of_seed_and_number_alone():
    noise = Noise(sigma=1.0, assumed=1.0, seed=3, add=True, clean_fraction=0.5)
    together = noise.noisy(np.arange(200))
    alone = [noise.noisy(np.array([number])).item() for number in range(200)]
    assert together.tolist() == alone
    assert together.tolist() != replace(noise, seed=4).noisy(np.arange(200)).tolist()


def test_residuals_add_up():
    whole = Residual(2, 1.0, 5.0) + Residual(2, 3.0, 7.0)
    assert whole == Residual(4, 4.0, 12.0)
    assert whole.std == pytest.approx(math.sqrt(2))
    assert Residual(3, 0.0, 0.0).psnr == math.inf


def test_images_that_are_observations_already_are_taken_as_they_are(tmp_path):
    clean = clean_store(tmp_path / "clean")
    observe(clean, tmp_path / "noisy", np.arange(11), add=False, sigma=0.1)
    noisy = ImageStore.open(tmp_path / "noisy")
    np.testing.assert_array_equal(noisy.all(), ImageStore.open(clean).all())
    np.testing.assert_array_equal(noisy.sigma, np.full(11, 0.1, np.float32))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_reported_and_leaves_no_torn_file(tmp_path, workers):
    clean = clean_store(tmp_path / "clean", count=400, shard_size=100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            observe(clean, tmp_path / "noisy", np.arange(400), workers=workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_of(tmp_path / "noisy") == {}


SLOW_RUN = """
import sys
from pathlib import Path
import numpy as np
from dsd.operators.config import IdentityOperator
from dsd.corruption.writer import Noise, write_noisy_store

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    noise = Noise(sigma=1.0, assumed=1.0, seed=0, add=True)
    write_noisy_store(
        folder / "clean",
        folder / "noisy",
        np.arange(200_000),
        noise=noise,
        operator=IdentityOperator(kind="identity"),
        workers=2,
    )
"""


def living_children(pid):
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed if b"spawn_main" in command_of(int(child))]


def command_of(pid):
    """Its command line; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_and_leave_no_store(tmp_path, kind):
    block = Block(np.zeros((200_000, 1, 1, 1), np.uint8))
    write_store(tmp_path / "clean", [block], scale=1.0, offset=0.0, shard_size=50_000)
    (tmp_path / "run.py").write_text(SLOW_RUN)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: len(living_children(parent.pid)) == 2)
    workers = living_children(parent.pid)
    parent.send_signal(kind)
    parent.wait(60)
    wait_until(lambda: not any(map(command_of, workers)))
    assert parent.returncode != 0
    assert not (tmp_path / "noisy/meta.json").exists()


def test_workers_start_without_torch():
    code = "import sys, dsd.corruption; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


OPERATORS = {
    "mask": {"keep_prob": 0.4, "further_mask_prob": 0.1},
    "blur": {"std": 1.0, "radius": 2},
    "downsample": {"factor": 2},
    "fourier": {"acceleration": 3.0, "center": 0.1, "further_mask_prob": 0.1},
}
IMAGE = (2, 6, 8)


def operator_choice(kind):
    return TypeAdapter(OperatorChoice).validate_python({"kind": kind, **OPERATORS[kind]})


@pytest.mark.parametrize("kind", OPERATORS)
def test_observations_go_through_the_operator_and_their_noise_through_the_view(kind, tmp_path):
    clean = clean_store(tmp_path / "clean", shape=IMAGE)
    indices = np.array([1, 4, 10])
    observe(clean, tmp_path / "noisy", indices, operator=operator_choice(kind))
    noisy = ImageStore.open(tmp_path / "noisy")
    operator = Operator.of_store(noisy.meta.info)
    assert (operator.choice, operator.shape) == (operator_choice(kind), IMAGE)
    assert noisy.shape == operator.observed_shape
    x0 = ImageStore.open(clean).all()[indices]
    eps = torch.from_numpy(noise_of(5, indices, operator.observed_shape))
    view = operator.stored_view(noisy.meta.info, noisy.index.numpy(), noisy.all())
    expected = operator.forward(x0, view) + 0.3 * operator.project(eps, view)
    torch.testing.assert_close(noisy.all(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(operator.project(noisy.all(), view), noisy.all())


@pytest.mark.parametrize("kind", OPERATORS)
def test_through_operators_too_the_bytes_depend_on_seed_and_images_alone(kind, tmp_path):
    found = []
    for name, size, workers in (("one", 100, 1), ("many", 3, 2 if kind == "fourier" else 1)):
        clean = clean_store(tmp_path / name, count=7, shard_size=size, shape=IMAGE)
        folder = tmp_path / f"{name}-noisy"
        observe(clean, folder, np.arange(7), operator=operator_choice(kind), workers=workers)
        found.append(ImageStore.open(folder).all())
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", OPERATORS)
def test_the_residual_measures_the_noise_of_what_was_observed(kind, tmp_path):
    clean = clean_store(tmp_path / "clean", count=800, shard_size=200, shape=IMAGE)
    operator = operator_choice(kind)
    _, residual = observe(clean, tmp_path / "noisy", np.arange(800), sigma=0.25, operator=operator)
    assert residual.std == pytest.approx(0.25, rel=4 / math.sqrt(2 * residual.count))
    share = {"mask": 0.4, "blur": 1, "downsample": 0.25, "fourier": 1 / 3}[kind]
    assert residual.count == pytest.approx(800 * 96 * share, rel=0.03)


def test_noisy_images_that_were_downsampled_are_of_larger_images(tmp_path):
    clean = clean_store(tmp_path / "small", shape=IMAGE)
    operator = operator_choice("downsample")
    observe(clean, tmp_path / "noisy", np.arange(11), add=False, operator=operator)
    noisy = ImageStore.open(tmp_path / "noisy")
    assert torch.equal(noisy.all(), ImageStore.open(clean).all())
    found = Operator.of_store(noisy.meta.info)
    assert (found.shape, found.observed_shape) == ((2, 12, 16), IMAGE)

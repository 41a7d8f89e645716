"""Presets: the authors' settings against the equations and tables of the papers."""

import shutil

import pytest
import torch
from stage_helpers import ROOT

from dsd.model.noise_levels import sample_generator_levels, sample_teacher_levels
from dsd.pretraining.denoising_loss import ambient_denoising_loss
from dsd.utils.errors import ParamsError
from pipeline.__main__ import main
from pipeline.params.model import Params
from pipeline.params.presets import apply_preset, load_preset
from pipeline.params.reader import leaves, load_params

COUNT = 200_000
NAMES = [
    "afhq-v2", "celeba-hq", "cifar10", "cifar10-quick", "fashion-mnist", "ffhq", "paper-method",
    "quick",
]  # fmt: skip


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def preset(name, workspace) -> Params:
    apply_preset(name, workspace)
    return load_params(workspace)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_valid_and_changes_only_what_it_names(name, workspace):
    before = leaves(load_params(workspace).model_dump(mode="json"))
    text = (workspace / "params.yaml").read_text()
    changed = apply_preset(name, workspace)
    after = leaves(load_params(workspace).model_dump(mode="json"))
    assert {key: value for key, value in after.items() if before[key] != value} == changed
    assert {key: after[key] for key in load_preset(name)} == load_preset(name)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert all(comment in (workspace / "params.yaml").read_text() for comment in comments)
    assert apply_preset(name, workspace) == {}
    assert f"`{name}`" in (ROOT / "docs" / "params.md").read_text()


@pytest.mark.parametrize(
    ("name", "sizes", "batches", "steps", "dropout", "alpha"),
    [
        ("cifar10", [2, 2, 2], (512, 256), (1e-3, 1e-5), 0.13, 1.2),
        ("ffhq", [1, 2, 2, 2], (256, 512), (2e-4, 1e-5), 0.05, 1.2),
        ("celeba-hq", [1, 2, 2, 2], (256, 512), (2e-4, 1e-5), 0.15, 1.2),
        ("afhq-v2", [1, 2, 2, 2], (256, 512), (2e-4, 5e-6), 0.25, 1.0),
    ],
)
def test_the_papers_scale_is_the_authors_scripts(
    name, sizes, batches, steps, dropout, alpha, workspace
):
    params = preset(name, workspace)
    pretrain, distill = params.pretrain, params.distill
    if name != "cifar10":
        assert (params.data.source, params.data.resolution) == ("folder", 64)
        assert name in params.data.path
    assert params.corrupt.sigma == 0.2
    assert (pretrain.batch_size, distill.batch_size) == batches
    assert (pretrain.learning_rate, distill.learning_rate) == steps
    assert distill.learning_rate_fake == distill.learning_rate
    assert (pretrain.kimg, distill.kimg, distill.fake_updates_per_step) == (200_000, 100_000, 1)
    assert (pretrain.lr_warmup_kimg, pretrain.ema_halflife_kimg) == (10_000, 500)
    assert (distill.alpha, distill.sigma_init, distill.betas) == (alpha, 2.5, [0.0, 0.999])
    assert (distill.lr_schedule, distill.clamp_output, distill.divergence) == (
        "constant", False, "sid",
    )  # fmt: skip
    assert params.network.model_dump() == {
        "kind": "unet", "patch_size": 1, "model_channels": 128, "channel_mult": sizes,
        "num_blocks": 4,
        "attention_resolutions": [16], "dropout": dropout, "sigma_data": 0.5,
    }  # fmt: skip
    assert (params.evaluate.sampler.num_steps, params.evaluate.num_samples) == (18, 50_000)


def test_the_preset_for_clothes_is_that_for_cifar_with_other_data(workspace):
    clothes, cifar = load_preset("fashion-mnist"), load_preset("cifar10")
    about_data = {"data.name", "data.pad", "distill.selection.features", "evaluate.features"}
    assert {key for key in clothes if clothes[key] != cifar[key]} == about_data
    assert clothes.keys() == cifar.keys()
    params = preset("fashion-mnist", workspace)
    assert params.data.resolution == 28 + 2 * params.data.pad


@pytest.mark.parametrize(
    ("sigma_y", "wasted"), [(0.05, 6.7), (0.1, 17.9), (0.2, 36.6), (0.4, 59.3)]
)
@pytest.mark.parametrize("role", ["teacher", "fake"])
def test_levels_are_clamped_log_normals(role, sigma_y, wasted, workspace):
    """t = max(exp(-1.2 + 1.2 u), sigma), added noise sqrt(t^2 - sigma^2)."""
    params = preset("paper-method", workspace)
    noise = params.pretrain.noise if role == "teacher" else params.distill.fake_noise
    levels = torch.full((COUNT,), sigma_y)
    t, added = sample_teacher_levels(noise, levels, torch.Generator().manual_seed(0))
    u = torch.randn(COUNT, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(t, torch.maximum((-1.2 + 1.2 * u).exp(), levels))
    torch.testing.assert_close(added**2, t**2 - sigma_y**2, rtol=1e-4, atol=1e-6)
    assert 100 * float((added == 0).double().mean()) == pytest.approx(wasted, abs=0.5)


def test_the_objective_is_the_adjusted_one_with_edms_weight(workspace):
    params = preset("paper-method", workspace)
    sigma_data, s = params.network.sigma_data, torch.tensor([0.2, 0.2, 0.2])
    t = torch.tensor([0.25, 0.9, 8.0])
    random = torch.Generator().manual_seed(1)
    y, n, d = (torch.randn(3, 5, generator=random) for _ in range(3))
    x_t = y + (t**2 - s**2).sqrt()[:, None] * n
    h = ((t**2 - s**2) / t**2)[:, None] * d + (s**2 / t**2)[:, None] * x_t
    w = (t**2 + sigma_data**2) / (t * sigma_data) ** 2
    actual = ambient_denoising_loss(
        lambda x, sigma: d, y, sigma_y=s, sigma=t, sigma_add=(t**2 - s**2).sqrt(), n=n,
        weighting=params.pretrain.weighting, sigma_data=sigma_data,
    )  # fmt: skip
    torch.testing.assert_close(actual, w * (h - y).square().mean(1), rtol=1e-4, atol=1e-5)
    assert params.pretrain.objective == "adjusted"


def test_the_generators_levels_are_the_karras_grid_up_to_eight_tenths(workspace):
    """r ~ U(0, 0.8), t = (80^(1/7) + (1 - r)(0.002^(1/7) - 80^(1/7)))^7: median .965, top 24.4."""
    noise = preset("paper-method", workspace).distill.noise
    t = sample_generator_levels(
        noise, COUNT, torch.Generator().manual_seed(0), torch.device("cpu")
    )
    r = 0.8 * torch.rand(COUNT, generator=torch.Generator().manual_seed(0))
    top, bottom = 80 ** (1 / 7), 0.002 ** (1 / 7)
    torch.testing.assert_close(t, (top + (1 - r) * (bottom - top)) ** 7)
    assert float(t.median()) == pytest.approx(0.965, abs=0.03)
    assert float(t.max()) == pytest.approx(24.4, rel=0.01)
    below = [100 * float((t < s).double().mean()) for s in (0.1, 0.2, 0.4)]
    assert below == pytest.approx([26.4, 32.8, 39.9], abs=0.3)


def test_the_command_writes_the_values_and_says_which(workspace, capsys):
    assert main(["preset", "paper-method"]) == 0
    out = capsys.readouterr().out
    assert "distill.clamp_output: false" in out
    assert "values of params.yaml changed to those of paper-method" in out
    assert load_params(workspace).distill.clamp_output is False


def test_a_preset_that_does_not_fit_leaves_the_file_alone(workspace):
    params = workspace / "params.yaml"
    broken = params.read_text().replace("  sigma: 0.5", "  sigma: -1.0")
    params.write_text(broken)
    with pytest.raises(ParamsError, match=r"corrupt\.sigma"):
        apply_preset("paper-method", workspace)
    assert params.read_text() == broken


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preset", "papr"], f"no preset is called 'papr'; there are {', '.join(NAMES)}"),
        (["preset"], f"preset needs a name: {', '.join(NAMES)}"),
        (["check", "me"], "check takes no name, but 'me' was given"),
    ],
)
def test_a_wrong_name_is_one_message(arguments, message, workspace, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err

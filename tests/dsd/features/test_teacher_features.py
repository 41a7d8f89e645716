"""The teacher's own features, in which a generator is chosen by default."""

import json

import pytest
import torch
from stage_helpers import params_with, random_images

from dsd.features.cache import FeatureCache
from dsd.features.extractor import Extractor, extract
from dsd.features.teacher import LEAST_SIGMA, TeacherFeatures
from dsd.model.checkpoint import build_denoiser, load_denoiser
from dsd.model.config import UNetConfig
from dsd.model.denoiser import coefficients
from dsd.operators.config import MaskOperator
from dsd.operators.operator import Operator
from dsd.storage.image_store import ImageStore
from dsd.utils.images import from_uint8, to_uint8
from pipeline.stages.features import open_features
from pipeline.stages.measures import EvaluationData, FeatureSpaceEvaluator

CPU = torch.device("cpu")
NETWORK = UNetConfig(
    kind="unet",
    patch_size=1, model_channels=8, channel_mult=[1, 2, 3], num_blocks=2,
    attention_resolutions=[4], dropout=0.1,
    sigma_data=0.5,
)  # fmt: skip


def pixels(channels=1, count=5):
    return torch.from_numpy(random_images(count, channels, 8, 8))


def features_of(denoiser, sigma=0.3):
    return TeacherFeatures(denoiser.eval(), sigma, weights="0123456789abcdefgh")


@pytest.mark.parametrize("channels", [1, 5])
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


def test_a_saved_teacher_is_a_space_of_noisy_images_alone(trained):
    """At the observations' level, with its weights in the protocol and no distance to clean."""
    params = params_with(evaluate={"num_samples": 60}, run={"eval_batch_size": 25})
    train, heldout = (
        ImageStore.open(trained.artifact("corrupt") / part) for part in ("train", "heldout")
    )
    sigma = torch.cat([train.sigma[1:], 0 * train.sigma[:1]])  # one that stayed clean
    extractor = open_features("teacher", params, trained, sigma, CPU)
    folder = trained.artifact("pretrain")
    weights = json.loads((folder / "model.json").read_text())["weights_sha256"]
    assert extractor.protocol.startswith(f"teacher {weights[:16]},")
    observations, level = to_uint8(train.all()), float(train.sigma.max())
    with torch.no_grad():
        means = load_denoiser(folder).encode(
            from_uint8(observations), torch.full((len(observations),), level)
        )
    expected = torch.cat([h.double().mean((2, 3)) for h in means], 1)
    found = extract(extractor, observations, batch_size=25)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    operator = Operator.of_store(train.meta.info)
    data = EvaluationData(
        observations, observations, train.sigma, train.index,
        to_uint8(heldout.all()), heldout.sigma, operator,
    )  # fmt: skip
    space = FeatureSpaceEvaluator(extractor, data, params, FeatureCache(trained.root / "cache"))
    measured = space.measures(observations, None)
    assert measured["frechet"] is None
    assert measured["proximal_frechet"] > 0
    assert space.to_clean(observations) is None

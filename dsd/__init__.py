"""Denoising score distillation: one-step image generators from noisy images alone.

    from dsd import load_generator

    generator = load_generator("data/distill/generator")
    images = generator.sample(16, seed=0)  # uint8 [16, C, H, W]

Names are imported when they are first used, so that ``import dsd`` does not load torch.
"""

from importlib import import_module

_HOMES = {
    "Denoiser": "dsd.model.denoiser",
    "Distillation": "dsd.distillation.trainer",
    "GaussianMixture": "dsd.theory.gaussian_mixture",
    "ImageStore": "dsd.storage.image_store",
    "OneStepGenerator": "dsd.model.generator",
    "Operator": "dsd.operators.operator",
    "TeacherTraining": "dsd.pretraining.trainer",
    "UNet": "dsd.model.networks.unet",
    "ambient_denoising_loss": "dsd.pretraining.denoising_loss",
    "consistency_loss": "dsd.pretraining.consistency_loss",
    "corrupt": "dsd.corruption.writer",
    "frechet_distance": "dsd.metrics.frechet",
    "frechet_distance_of_folders": "dsd.frechet",
    "load_denoiser": "dsd.model.checkpoint",
    "load_extractor": "dsd.features.extractor",
    "load_generator": "dsd.model.checkpoint",
    "renoise": "dsd.selection.proximal",
    "reverse_kl_loss": "dsd.distillation.losses",
    "sample_teacher": "dsd.model.samplers",
    "score_distillation_sampling_loss": "dsd.distillation.losses",
    "score_identity_loss": "dsd.distillation.losses",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    """Import ``name`` from the module that defines it."""
    if name not in _HOMES:
        msg = f"module 'dsd' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)

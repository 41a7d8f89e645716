"""Denoising score distillation: one-step image generators from noisy images alone.

    from dsd import load_generator

    generator = load_generator("data/distill/generator")
    images = generator.sample(16, seed=0)  # uint8 [16, C, H, W]

Names are imported when they are first used, so that ``import dsd`` does not load torch.
"""

from importlib import import_module

_HOMES = {
    "Denoiser": "dsd.precond",
    "Distillation": "dsd.training.distill",
    "GaussianMixture": "dsd.analytic",
    "ImageStore": "dsd.imagestore",
    "OneStepGenerator": "dsd.generator",
    "Operator": "dsd.operators",
    "TeacherTraining": "dsd.training.pretrain",
    "UNet": "dsd.networks.unet",
    "ambient_denoising_loss": "dsd.losses.pretrain",
    "consistency_loss": "dsd.losses.consistency",
    "corrupt": "dsd.corruption",
    "frechet_distance": "dsd.metrics.frechet",
    "load_denoiser": "dsd.checkpoint",
    "load_extractor": "dsd.features",
    "load_generator": "dsd.checkpoint",
    "renoise": "dsd.metrics.proximal",
    "reverse_kl_loss": "dsd.losses.distill",
    "sample_teacher": "dsd.samplers",
    "score_distillation_sampling_loss": "dsd.losses.distill",
    "score_identity_loss": "dsd.losses.distill",
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

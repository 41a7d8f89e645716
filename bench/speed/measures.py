"""Features of images, and Frechet distances of features."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from bench.accuracy.frechet import clean_fid, features
from bench.speed.work import Work
from dsd.features.extractor import extract, load_extractor
from dsd.metrics.frechet import Moments, frechet_distance, moments
from scripts.fit_fashion_classifier import SOURCE, labelled_images

__all__ = ["extraction", "frechet_clean_fid", "frechet_ours", "moments_of_features"]

from sandbox import ROOT as _ROOT


def extraction(device: torch.device, options: Mapping[str, Any]) -> Work:
    """Features of embedded clothes, in one space."""
    extractor = load_extractor(options["space"], device=device)
    images, _ = labelled_images(_ROOT / SOURCE)
    chosen = images[: options["images"]]
    return Work(
        lambda: extract(extractor, chosen, batch_size=500), float(len(chosen)), counted=True
    )


def _two_sets(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real features of clothes, and of other clothes with faint noise."""
    reference, _, generated = features().values()
    return generated[:, :dim], reference[:, :dim]


def _fresh(a: Moments) -> Moments:
    """The same moments without the factor that they keep once it was needed."""
    return replace(a)


def frechet_ours(device: torch.device, options: Mapping[str, Any]) -> Work:
    """Our distance; as in a run one of two covariances is factored each time."""
    generated, reference = map(moments, _two_sets(options["dim"]))
    return Work(lambda: frechet_distance(_fresh(generated), reference), 1.0)


def frechet_clean_fid(device: torch.device, options: Mapping[str, Any]) -> Work:
    """clean-fid's distance of the same moments."""
    generated, reference = map(moments, _two_sets(options["dim"]))
    return Work(lambda: clean_fid(generated, reference), 1.0)


def moments_of_features(device: torch.device, options: Mapping[str, Any]) -> Work:
    """Mean and covariance of 2,500 vectors: what a distance reads."""
    generated, _ = _two_sets(options["dim"])
    return Work(lambda: moments(generated), float(len(generated)), moved=float(generated.nbytes))

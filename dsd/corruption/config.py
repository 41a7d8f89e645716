"""The observation model: the section ``corrupt``."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dsd.operators.config import PARTIAL_OPERATORS, OperatorChoice
from dsd.utils.config import Count, Section, _auto_or_number

_LARGEST = 10.0
"""Level in data units."""

AutoLevel = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False), Tag("number")]
    | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(_auto_or_number),
]


class Corrupt(Section):
    """The observation model y = A x0 + sigma * eps, one fixed draw for each image."""

    operator: OperatorChoice
    """What is lost of an image besides the noise: A, the identity in the paper."""

    sigma: AutoLevel
    """Noise level of the observations, in data units (grey levels divided by 127.5); the paper
    uses 0.1 to 0.4 on images in [-1, 1]. Of noisy images it is the level after data.resolution
    has averaged them, and is compared with the estimate. ``auto``: unknown, to be estimated from
    noisy images (data.content noisy)."""

    unit: Literal["data", "raw"]
    """Unit of ``sigma`` and ``sigma_hat`` as numbers. ``data``: data units, in which images span
    [-1, 1]. ``raw``: numbers of the files, such as grey levels, counts or electrons; the stage
    converts them by ``data.intensity``."""

    sigma_hat: AutoLevel | None
    """Noise level that everything after this stage assumes. null: ``sigma``; a number: to study a
    wrong one; ``auto``: the upper end of an interval estimated from the noisy images, which errs
    on the safe side."""

    trust_sigma: bool
    """Whether to train with the given level even where noisy images (data.content noisy) show
    another one. ``false``: a level that contradicts the estimate, or noise that is not white,
    stops the run."""

    spectrum: Annotated[str, Field(pattern=r"^(white|auto|.+\.npy)$")]
    """Power spectrum of the noise, which is added alike everywhere: in this stage, in both
    trainings, in the teacher's sampler and for Proximal FID. ``white``: all pixels are
    independent. ``auto``: neighbours are correlated (after interpolation, on some detectors, after
    reconstruction), as estimated from flat places of noisy images (data.content noisy). A .npy
    file: the kernel with which white noise was convolved (two axes), or frames of noise alone
    (NYX or NCYX), such as dark frames or an empty region. Levels stay those of single pixels."""

    clean_fraction: Annotated[float, Field(ge=0, lt=1)]
    """Share of the training images that get no noise, chosen by the seed: to study what a few
    clean images add. Their level 0 is known to training. None of those held out."""

    num_heldout: Count
    """Noisy images kept out of training; Proximal FID is measured against them."""

    workers: Count
    """Processes that draw noise, at most one for each file of ``data.shard_size`` images; the
    bytes do not depend on it."""

    @model_validator(mode="after")
    def _levels_are_in_their_unit(self) -> "Corrupt":
        for name, level in (("sigma", self.sigma), ("sigma_hat", self.sigma_hat)):
            if self.unit == "data" and isinstance(level, float) and level > _LARGEST:
                msg = (
                    f"corrupt.{name} is {level:g}, more than {_LARGEST:g} in data units, in which "
                    "images span [-1, 1]: lower it, or set corrupt.unit to raw if it is a level "
                    "of the raw numbers"
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _an_estimate_needs_whole_images(self) -> "Corrupt":
        kind = self.operator.kind
        if "auto" in (self.sigma, self.sigma_hat) and kind in PARTIAL_OPERATORS:
            msg = (
                f"corrupt.operator.kind is {kind}, which leaves gaps in the images: their noise "
                "cannot be estimated, so give corrupt.sigma and corrupt.sigma_hat as numbers"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _what_is_hidden_is_independent(self) -> "Corrupt":
        kind = self.operator.kind
        if self.spectrum != "white" and kind in PARTIAL_OPERATORS:
            msg = (
                f"corrupt.spectrum is {self.spectrum} while corrupt.operator.kind is {kind}: "
                "correlated noise would tell of what is hidden, for which no loss here holds; set "
                "spectrum to white, or use an operator without gaps"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _only_a_given_level_is_trusted(self) -> "Corrupt":
        if self.trust_sigma and "auto" in (self.sigma, self.sigma_hat):
            name = "sigma" if self.sigma == "auto" else "sigma_hat"
            msg = (
                f"corrupt.trust_sigma is true while corrupt.{name} is auto, so that there is no "
                f"given level to trust: set it to false, or give corrupt.{name} as a number"
            )
            raise ValueError(msg)
        return self

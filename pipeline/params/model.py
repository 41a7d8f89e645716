"""All of ``params.yaml``, and rules that concern several sections."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from dsd.corruption.config import Corrupt
from dsd.distillation.config import Distill
from dsd.evaluation.config import Evaluate
from dsd.model.config import NetworkConfig
from dsd.pretraining.config import Pretrain
from dsd.sources.config import CameraMap, Data
from dsd.utils.config import Section
from pipeline.params.config import Compute, Run


class Params(Section):
    """All of ``params.yaml``, in the order of the stages."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Root of every random draw."""

    data: Data
    corrupt: Corrupt
    network: NetworkConfig
    """The raw network inside every denoiser."""

    pretrain: Pretrain
    distill: Distill
    evaluate: Evaluate
    compute: Compute
    run: Run

    @model_validator(mode="after")
    def _sections_go_together(self) -> "Params":
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        data, corrupt, kind = self.data, self.corrupt, self.corrupt.operator.kind
        if kind == "fourier" and data.phase == "none" and data.intensity is None:
            yield (
                "corrupt.operator.kind is fourier, which observes complex images: "
                "set data.phase to smooth"
            )
        if data.content == "noisy":
            yield from self._problems_of_noisy_sources()
        for name, top in (
            ("evaluate.sampler.sigma_max", self.evaluate.sampler.sigma_max),
            ("distill.noise.sigma_max", self.distill.noise.sigma_max),
        ):
            for of, level in (("sigma", corrupt.sigma), ("sigma_hat", corrupt.sigma_hat)):
                if corrupt.unit == "data" and isinstance(level, float) and top <= level:
                    yield f"{name} is {top:g} but must be above corrupt.{of} = {level:g}"
        if corrupt.unit == "raw" and isinstance(data.intensity, CameraMap):
            yield (
                "corrupt.unit is raw while data.intensity.camera is set: in raw units that noise "
                "has no one level; set unit to data, and sigma to auto"
            )
        if corrupt.sigma == "auto" and data.content == "clean":
            yield (
                "corrupt.sigma is auto while data.content is clean: noise will be added, so give "
                "its level as a number; corrupt.sigma_hat: auto then tries the estimate on it"
            )
        if corrupt.spectrum == "auto" and data.content == "clean":
            yield (
                "corrupt.spectrum is auto while data.content is clean: noise will be added, so "
                "set it to white, or to a .npy file with a kernel or frames of noise alone"
            )

    def _problems_of_noisy_sources(self) -> Iterator[str]:
        data, corrupt, kind = self.data, self.corrupt, self.corrupt.operator.kind
        if data.invalid == "mask" and kind != "identity":
            yield (
                f"corrupt.operator.kind is {kind} while data.invalid is mask: gaps are masked in "
                "images that are whole otherwise; set the operator to identity, or invalid to "
                "refuse"
            )
        if data.invalid == "mask" and corrupt.spectrum != "white":
            yield (
                f"corrupt.spectrum is {corrupt.spectrum} while data.invalid is mask: correlated "
                "noise would tell of what is hidden, for which no loss here holds; set spectrum "
                "to white, or invalid to refuse"
            )
        if kind in {"mask", "fourier"}:
            yield (
                f"corrupt.operator.kind is {kind} while data.content is noisy: which coefficients "
                "of such images are missing is not known; start from clean images"
            )
        if data.phase != "none":
            yield (
                f"data.phase is {data.phase} while data.content is noisy: only clean images "
                "are made complex; set data.phase to none"
            )
        if corrupt.clean_fraction > 0:
            yield (
                f"corrupt.clean_fraction is {corrupt.clean_fraction:g}, but data.content is "
                "noisy, so no image is clean: set it to 0"
            )
        if data.variance is not None:
            yield from self._problems_of_known_variances()
        if data.pad > 0:
            yield (
                f"data.pad is {data.pad} while data.content is noisy: a black border has no "
                "noise, which the model cannot know; set data.pad to 0"
            )

    def _problems_of_known_variances(self) -> Iterator[str]:
        corrupt = self.corrupt
        for met, key, needed in (
            (
                corrupt.sigma == "auto",
                "sigma",
                "auto, which then takes the variance of each pixel",
            ),
            (corrupt.sigma_hat is None, "sigma_hat", "null"),
            (corrupt.spectrum == "white", "spectrum", "white: known variances are of such noise"),
            (corrupt.operator.kind == "identity", "operator", "{kind: identity}"),
        ):
            if not met:
                yield f"data.variance is set: set corrupt.{key} to {needed}"

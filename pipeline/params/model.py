"""All of ``params.yaml``, and rules that concern several sections."""

from itertools import product
from typing import Annotated

from pydantic import Field, model_validator

from dsd.corruption.config import Corrupt
from dsd.distillation.config import Distill
from dsd.evaluation.config import Evaluate
from dsd.model.config import NetworkConfig
from dsd.pretraining.config import Pretrain
from dsd.sources.config import Data
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
    def _operator_fits_the_data(self) -> "Params":
        kind = self.corrupt.operator.kind
        if kind == "fourier" and self.data.phase == "none":
            msg = (
                "corrupt.operator.kind is fourier, which observes complex images: "
                "set data.phase to smooth"
            )
            raise ValueError(msg)
        if kind in {"mask", "fourier"} and self.data.content == "noisy":
            msg = (
                f"corrupt.operator.kind is {kind} while data.content is noisy: which coefficients "
                "of such images are missing is not known; start from clean images"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _phase_is_given_to_clean_images(self) -> "Params":
        if self.data.phase != "none" and self.data.content == "noisy":
            msg = (
                f"data.phase is {self.data.phase} while data.content is noisy: only clean images "
                "are made complex; set data.phase to none"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _levels_reach_above_the_data_noise(self) -> "Params":
        tops = {
            "evaluate.sampler.sigma_max": self.evaluate.sampler.sigma_max,
            "distill.noise.sigma_max": self.distill.noise.sigma_max,
        }
        levels = {
            "corrupt.sigma": self.corrupt.sigma,
            "corrupt.sigma_hat": self.corrupt.sigma_hat,
        }
        for (name, top), (of, level) in product(tops.items(), levels.items()):
            if isinstance(level, float) and top <= level:
                msg = f"{name} is {top:g} but must be above {of} = {level:g}"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _only_clean_images_can_stay_clean(self) -> "Params":
        if self.corrupt.clean_fraction > 0 and self.data.content == "noisy":
            msg = (
                f"corrupt.clean_fraction is {self.corrupt.clean_fraction:g}, but data.content is "
                "noisy, so no image is clean: set it to 0"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _noise_to_be_added_has_a_level(self) -> "Params":
        if self.corrupt.sigma == "auto" and self.data.content == "clean":
            msg = (
                "corrupt.sigma is auto while data.content is clean: noise will be added, so give "
                "its level as a number; corrupt.sigma_hat: auto then tries the estimate on it"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _noisy_images_get_no_border(self) -> "Params":
        if self.data.content == "noisy" and self.data.pad > 0:
            msg = (
                f"data.pad is {self.data.pad} while data.content is noisy: a black border has no "
                "noise, which the model cannot know; set data.pad to 0"
            )
            raise ValueError(msg)
        return self

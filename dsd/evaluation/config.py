"""The evaluation: the section ``evaluate``."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from dsd.features.config import INCEPTION_SPACES, FeatureSpace
from dsd.model.config import Sampler
from dsd.utils.config import Section


class Evaluate(Section):
    """Measuring the generator and three ways to sample its teacher."""

    features: Annotated[list[FeatureSpace], Field(min_length=1)]
    """Feature spaces, the headline one first: ``fashion-classifier``, ``efficientnet-lite0``,
    ``inception-edm``, ``inception-clean``, ``teacher`` (Proximal distances only) or your own,
    ``package.module:function`` or a TorchScript file (``*.ts``)."""

    inception_weights: str | None
    """File of Inception's weights, ``pt_inception-2015-12-05-6726825d.pth``; null downloads it."""

    inception_statistics: str | None
    """Published statistics of clean images (``npz``) to which FID is measured, too. A file that
    does not say its protocol needs that of its features before it:
    ``inception-edm:cifar10-32x32.npz``."""

    num_samples: Annotated[int, Field(ge=2)]
    """Images drawn from each model."""

    sampler: Sampler

    @model_validator(mode="after")
    def _each_space_once(self) -> "Evaluate":
        twice = sorted({name for name in self.features if self.features.count(name) > 1})
        if twice:
            msg = f"features names {', '.join(twice)} more than once; name each space once"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _statistics_of_a_space(self) -> "Evaluate":
        spaces = {*self.features} & {*INCEPTION_SPACES}
        said = self.published_statistics and self.published_statistics[0]
        if self.published_statistics and (not spaces or said not in {None, *spaces}):
            msg = f"inception_statistics needs {said or ' or '.join(INCEPTION_SPACES)} in features"
            raise ValueError(msg)
        return self

    @property
    def published_statistics(self) -> tuple[str | None, Path] | None:
        """Feature space, if it is said, and file of ``inception_statistics``."""
        if self.inception_statistics is None:
            return None
        space, _, file = self.inception_statistics.partition(":")
        if space in INCEPTION_SPACES:
            return space, Path(file)
        return None, Path(self.inception_statistics)

"""Names of the feature extractors."""

from typing import Annotated

from pydantic import AfterValidator

from dsd.utils.functions import is_function_name

BUILT_IN = {
    "fashion-classifier": "dsd.features.fashion_classifier:load_fashion_classifier",
    "efficientnet-lite0": "dsd.features.efficientnet:load_efficientnet_lite0",
    "inception-edm": "dsd.features.inception:load_inception_edm",
    "inception-clean": "dsd.features.inception:load_inception_clean",
}
"""Functions of a device that make the extractors that come with dsd."""

FEATURE_SPACES = ("teacher", *BUILT_IN)
"""The first is the run's own teacher, whose folder nobody else knows."""

INCEPTION_SPACES = ("inception-edm", "inception-clean")
"""Protocols of FID; ``dsd.features.inception`` says how they differ."""

COLOUR_BLIND = ("fashion-classifier",)
"""Those that see colour images in grey."""

KNOWN_CHANNELS = (1, 2, 3)
"""Channels of the images that all but the teacher take: grey, complex and RGB."""

TORCHSCRIPT_SUFFIXES = (".ts", ".torchscript")


def _known_features(value: str) -> str:
    if value == "inception":
        msg = (
            "'inception' does not say how images are resized: name inception-edm (as in the "
            "papers of EDM, SiD and StyleGAN) or inception-clean (clean-fid's mode clean)"
        )
        raise ValueError(msg)
    own = value.endswith(TORCHSCRIPT_SUFFIXES) or is_function_name(value)
    if value not in FEATURE_SPACES and not own:
        msg = (
            f"{value!r} is no feature extractor: name one of {', '.join(FEATURE_SPACES)}, a "
            "function package.module:function, or a TorchScript file *.ts or *.torchscript"
        )
        raise ValueError(msg)
    return value


FeatureSpace = Annotated[str, AfterValidator(_known_features)]

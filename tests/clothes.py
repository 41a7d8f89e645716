"""The labelled clean images that are embedded, decoded once for all tests."""

from functools import cache
from pathlib import Path

from pipeline.fit_fashion_classifier import SOURCE, labelled_images, split

ROOT = Path(__file__).parents[1]


@cache
def clothes():
    """((training images, labels), (held-out images, labels))."""
    return split(labelled_images(ROOT / SOURCE))

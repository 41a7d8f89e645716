"""The labelled clean images that are embedded, decoded once for all tests."""

from functools import cache

from sandbox import ROOT
from scripts.fit_fashion_classifier import SOURCE, labelled_images, split


@cache
def clothes():
    """((training images, labels), (held-out images, labels))."""
    return split(labelled_images(ROOT / SOURCE))

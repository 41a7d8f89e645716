"""Opening the images that a stage reads."""

from dsd.storage.image_store import ImageStore
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.paths import Paths

__all__ = ["open_images"]


def open_images(paths: Paths, name: str, log: StageLog) -> ImageStore:
    """Open a store of images, such as ``corrupt/train``, and record that the stage reads it.

    Raises:
        DataError: The store is missing or damaged.
    """
    store = ImageStore.open(paths.artifact(name))
    log.reads(name, digest=store.fingerprint, count=len(store), shape=store.shape)
    return store

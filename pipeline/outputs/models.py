"""Which model a command uses, and where it writes."""

from pathlib import Path

import torch

from dsd.utils.errors import DataError, one_line
from pipeline.stage_io.paths import Paths

__all__ = ["device_of", "model_folder", "require_free"]


def model_folder(model: str | None, default: Path, paths: Paths) -> Path:
    """Return the folder of a model.

    Args:
        model: A folder, or ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` of MLflow.
        default: Where none is given.
        paths: The workspace, whose store is asked unless MLFLOW_TRACKING_URI names another.

    Raises:
        DataError: MLflow is missing or has no such model.
    """
    if model is None:
        return default
    return _registered(model, paths) if model.startswith("models:/") else Path(model)


def _registered(model: str, paths: Paths) -> Path:
    try:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        import pipeline.tracking.store  # noqa: F401 - settings of MLflow, before it is imported
    except ModuleNotFoundError as error:
        msg = f"{model}: the package {error.name} is missing. Install it, or name a folder"
        raise DataError(msg) from error
    from pipeline.runtime.addresses import tracking_address

    uri = tracking_address(paths)
    try:
        folder = Path(download_artifacts(model, tracking_uri=uri))
    except (MlflowException, OSError) as error:
        msg = f"{one_line(model)}: MLflow does not give it ({one_line(str(error))[:200]})"
        raise DataError(f"{msg}. Look at the name, or name a folder") from error
    return folder / "artifacts" / "generator"


def device_of(name: str) -> torch.device:
    """Return the device: a GPU where there is one, unless the CPU is asked for.

    Raises:
        DataError: There is no GPU.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        msg = "--device cuda: there is no GPU that torch can use. Leave it out"
        raise DataError(msg)
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def require_free(place: Path, *, overwrite: bool) -> None:
    """Refuse to write over what is there.

    Raises:
        DataError: It is, and that is not asked for.
    """
    taken = any(place.iterdir()) if place.is_dir() else place.exists() or place.is_symlink()
    if taken and not overwrite:
        msg = f"{one_line(place)}: it is there already. Name another place, or add --overwrite"
        raise DataError(msg)

"""Logging the generator to MLflow: a pyfunc model made from code, without pickle."""

from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
import torch
from mlflow.entities import LoggedModelStatus
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

import dsd
from dsd.model.checkpoint import load_generator, read_spec
from pipeline.tracking.champion import WEIGHTS_TAG

__all__ = ["register_generator"]

_REQUIREMENTS = [
    "torch",
    "numpy",
    "scipy",
    "pillow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "jaxtyping",
]
_SERVED = Path(__file__).with_name("served_generator.py")


def register_generator(folder: Path, *, run_id: str, name: str, tracking_uri: str) -> None:
    """Log the generator in ``folder`` as a model of the run and register it as a new version.

    Called again after it was cut short, it goes on with what it finds in the store: there is one
    model of the run with these weights, and one version.

    The tracking store is also the registry. ``folder`` is that of a generator, as
    :func:`dsd.model.checkpoint.load_generator` takes it.
    """
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri, tracking_uri)
    weights = read_spec(folder).weights_sha256
    model_id = _logged(client, run_id, weights) or _log(folder, run_id, weights)
    source = f"models:/{model_id}"
    version = _registered(client, name, source) or mlflow.register_model(source, name).version
    client.set_model_version_tag(name, version, WEIGHTS_TAG, weights)


def _logged(client: mlflow.MlflowClient, run_id: str, weights: str) -> str | None:
    """The run's model with these weights; models of which files may be missing are deleted."""
    ready = None
    experiment = client.get_run(run_id).info.experiment_id
    for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        if model.status != LoggedModelStatus.READY:
            client.delete_logged_model(model.model_id)
        elif model.tags.get(WEIGHTS_TAG) == weights:
            ready = model.model_id
    return ready


def _registered(client: mlflow.MlflowClient, name: str, source: str) -> str | None:
    """The version that was made of a logged model."""
    found = client.search_model_versions(f"name='{name}' and source_path='{source}'")
    return found[0].version if found else None


def _log(folder: Path, run_id: str, weights: str) -> str:
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name="generator",
            python_model=str(_SERVED),
            # As an address: MLflow would take signs of a plain path for those of one.
            artifacts={"generator": folder.resolve().as_uri()},
            code_paths=[str(Path(dsd.__file__).parent)],
            # Given, because finding them out takes MLflow ten seconds in a process of its own.
            pip_requirements=[f"{package}=={_release(package)}" for package in _REQUIREMENTS],
            signature=_signature(folder),
            input_example=pd.DataFrame({"seed": [0], "num_images": [4]}),
            tags={WEIGHTS_TAG: weights},
        )
    model_id: str = logged.model_id
    return model_id


def _release(package: str) -> str:
    """Version without a local part such as ``+cpu``, which no index serves under that name."""
    return version(package).partition("+")[0]


def _signature(folder: Path) -> ModelSignature:
    image = load_generator(folder, torch.device("cpu")).sample(1, seed=0).numpy()
    columns = Schema([ColSpec(DataType.long, "seed"), ColSpec(DataType.long, "num_images")])
    images = Schema([TensorSpec(image.dtype, (-1, *image.shape[1:]))])
    return ModelSignature(inputs=columns, outputs=images)

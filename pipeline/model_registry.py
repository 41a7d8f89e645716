"""Logging the generator to MLflow: a pyfunc model made from code, without pickle."""

from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

import dsd
from dsd.checkpoint import load_generator, read_spec
from pipeline.champion import WEIGHTS_TAG

__all__ = ["register_generator"]

_REQUIREMENTS = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "jaxtyping",
)
_SERVED = Path(__file__).with_name("served_generator.py")


def register_generator(folder: Path, *, run_id: str, name: str, tracking_uri: str) -> None:
    """Log the generator in ``folder`` as a model of the run and register it as a new version.

    Args:
        folder: What :func:`dsd.checkpoint.load_generator` reads: weights and their description.
        run_id: The distillation's run.
        name: Name of the registered model.
        tracking_uri: The store; also the registry.
    """
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name="generator",
            python_model=str(_SERVED),
            artifacts={"generator": str(folder)},
            code_paths=[str(Path(dsd.__file__).parent)],
            # Given, because finding them out takes MLflow ten seconds in a process of its own.
            pip_requirements=[f"{package}=={_release(package)}" for package in _REQUIREMENTS],
            signature=_signature(folder),
            input_example=pd.DataFrame({"seed": [0], "num_images": [4]}),
            registered_model_name=name,
        )
    weights = read_spec(folder).weights_sha256
    mlflow.MlflowClient(tracking_uri, tracking_uri).set_model_version_tag(
        name, logged.registered_model_version, WEIGHTS_TAG, weights
    )


def _release(package: str) -> str:
    """Version without a local part such as ``+cpu``, which no index serves under that name."""
    return version(package).partition("+")[0]


def _signature(folder: Path) -> ModelSignature:
    shape = load_generator(folder, torch.device("cpu")).sample(1, seed=0).shape[1:]
    columns = Schema([ColSpec(DataType.long, "seed"), ColSpec(DataType.long, "num_images")])
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, *shape))])
    return ModelSignature(inputs=columns, outputs=images)

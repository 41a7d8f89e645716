"""The generator as an MLflow model; MLflow copies this file into the model and runs it there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from dsd.model.checkpoint import load_generator

__all__ = ["ServedGenerator"]

_MAX_IMAGES = 65_536


class RequestError(MlflowException, ValueError):
    """What was asked for cannot be drawn; MLflow's server answers with the message and HTTP 400.

    Args:
        message: What is wrong, and what may be asked for.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)


class ServedGenerator(PythonModel):
    """Images for rows of ``seed`` and ``num_images``; the same row always gives the same ones."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights from the model's artifacts."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._generator = load_generator(Path(context.artifacts["generator"]), device)

    def predict(
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Draw the images of all rows, one row after the other.

        Args:
            context: Not used.
            model_input: Columns ``seed`` (>= 0) and ``num_images`` (>= 1).
            params: Not used.

        Returns:
            Images, uint8, [n, c, h, w].

        Raises:
            RequestError: No rows, a negative seed, or a number of images out of range.
        """
        rows = [(int(row["seed"]), int(row["num_images"])) for _, row in model_input.iterrows()]
        _check(rows)
        drawn = [self._generator.sample(count, seed=seed).cpu().numpy() for seed, count in rows]
        return np.concatenate(drawn)


def _check(rows: list[tuple[int, int]]) -> None:
    for seed, count in rows:
        if seed < 0 or count < 1:
            msg = f"seed must be >= 0 and num_images >= 1, not {seed} and {count}"
            raise RequestError(msg)
    total = sum(count for _, count in rows)
    if not 1 <= total <= _MAX_IMAGES:
        msg = f"a request may ask for 1 to {_MAX_IMAGES} images, not {total}; ask several times"
        raise RequestError(msg)


mlflow.models.set_model(ServedGenerator())

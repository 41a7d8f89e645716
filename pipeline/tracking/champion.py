"""The alias ``champion`` of the registered generator, and the one rule that moves it.

The champion is the version with the smallest Proximal Frechet distance, which needs no clean
image. A version measured otherwise (other data, noise level, features or number of images) does
not compete: the alias stays until a person moves it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

__all__ = ["CHAMPION", "WEIGHTS_TAG", "consider"]

CHAMPION = "champion"
"""The alias."""

WEIGHTS_TAG = "weights_sha256"
"""Tag of a version by which an evaluation finds the generator that it measured."""

_DISTANCE_TAG, _PROTOCOL_TAG = "proximal_frechet", "proximal_protocol"
_REPETITION = {"seed", "notes", "without_frechet", "extractors"}
_PREFIX = "generator."


def consider(
    client: MlflowClient, model: str, evaluation: Run, summary: Mapping[str, Any]
) -> None:
    """Note a finished evaluation with the version that it measured, and move the alias if better.

    Args:
        client: Of the store, which is also the registry.
        model: Name of the registered model.
        evaluation: The run of ``evaluate``.
        summary: The evaluation's ``summary.json``.
    """
    version = _version_of(client, model, summary["generator"].get("weights_sha256"))
    if version is None:  # registered in another store, or deleted
        return
    protocol = _protocol_id(summary)
    tags = {
        _DISTANCE_TAG: repr(float(summary["generator"]["proximal_frechet"])),
        _PROTOCOL_TAG: protocol,
        "sigma": str(summary["protocol"]["sigma"]),
        "evaluation_run_id": evaluation.info.run_id,
    }
    for name, value in tags.items():
        client.set_model_version_tag(model, version.version, name, value)
    _show_with_model(client, evaluation, version)
    champion = _champion(client, model)
    if champion is None or champion.tags.get(_PROTOCOL_TAG) == protocol:
        _crown(client, model, protocol)


def _crown(client: MlflowClient, model: str, protocol: str) -> None:
    """Give the alias to the best of all versions that were measured alike.

    Of all, not of this one and the champion: evaluations that end at the same time then agree,
    whoever comes last.
    """
    alike = _versions(client, model, _PROTOCOL_TAG, protocol)
    best = min(alike, key=lambda version: float(version.tags[_DISTANCE_TAG]))
    try:
        client.set_registered_model_alias(model, CHAMPION, best.version)
    except MlflowException:  # another one gave it for the first time in between
        client.set_registered_model_alias(model, CHAMPION, best.version)


def _version_of(client: MlflowClient, model: str, weights: str | None) -> ModelVersion | None:
    """The newest version with these weights."""
    found = [] if weights is None else _versions(client, model, WEIGHTS_TAG, weights)
    return max(found, key=lambda version: int(version.version), default=None)


def _versions(client: MlflowClient, model: str, tag: str, value: str) -> list[ModelVersion]:
    found = list[ModelVersion]()
    token = None
    while True:
        page = client.search_model_versions(
            f"name='{model}' and tags.{tag}='{value}'", page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def _champion(client: MlflowClient, model: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(model, CHAMPION)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise


def _protocol_id(summary: Mapping[str, Any]) -> str:
    """Hash of what was measured and how; seeds repeat a measurement and may differ."""
    protocol = summary["protocol"]
    kept = {name: value for name, value in protocol.items() if name not in _REPETITION}
    if kept.get("clean_sha256") is not None:
        del kept["noisy_sha256"]  # another draw of the noise on the same images
    kept["extractor"] = protocol["extractors"][protocol["features"]]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _show_with_model(client: MlflowClient, evaluation: Run, version: ModelVersion) -> None:
    """Repeat the generator's numbers with the model, where MLflow's model pages show them."""
    scheme, _, model_id = (version.source or "").rpartition("/")
    if scheme != "models:":  # registered by a person, from files
        return
    now = evaluation.info.end_time or evaluation.info.start_time
    numbers = [
        Metric(name.removeprefix(_PREFIX), value, now, 0, model_id=model_id)
        for name, value in evaluation.data.metrics.items()
        if name.startswith(_PREFIX)
    ]
    client.log_batch(evaluation.info.run_id, metrics=numbers)

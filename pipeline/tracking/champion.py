"""The alias ``champion`` of the registered generator, and the one rule that moves it.

The champion is the version with the smallest Proximal Frechet distance, which needs no clean
image. A version measured otherwise (other data, noise level, features or number of images) does
not compete: the alias stays until a person moves it.
"""

from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry import SEARCH_MODEL_VERSION_MAX_RESULTS_THRESHOLD

from pipeline.tracking.headline import not_improved
from pipeline.tracking.provenance import NOT_PROTOCOL, protocol_id

__all__ = ["CHAMPION", "WEIGHTS_TAG", "update_champion"]

CHAMPION = "champion"
"""The alias."""

WEIGHTS_TAG = "weights_sha256"
"""Tag of a version by which an evaluation finds the generator that it measured."""

_DISTANCE_TAG, _PROTOCOL_TAG = "proximal_frechet", "proximal_protocol"
_IMPROVED_TAG = "improved_on_teacher"


def update_champion(
    client: MlflowClient, model: str, evaluation: Run, summary: Mapping[str, Any]
) -> ModelVersion | None:
    """Note a finished evaluation with the version that it measured, and move the alias if better.

    A generator whose Proximal distance is not below that of its teacher's best sampler does not
    compete. ``client`` is of the store, which is also the registry; ``summary`` is that of the
    evaluation.

    Returns:
        The version; None if the generator is not registered here.
    """
    weights = summary["generator"].get("weights_sha256")
    known = [] if weights is None else _versions(client, model, WEIGHTS_TAG, weights)
    if not known:  # registered in another store, or deleted
        return None
    version = max(known, key=lambda each: int(each.version))
    protocol = _protocol_id(summary)
    improved = "proximal_frechet" not in not_improved(summary)
    tags = {
        _IMPROVED_TAG: str(improved).lower(),
        _DISTANCE_TAG: repr(float(summary["generator"]["proximal_frechet"])),
        _PROTOCOL_TAG: protocol,
        "sigma": str(summary["protocol"]["sigma"]),
        "evaluation_run_id": evaluation.info.run_id,
    }
    for name, value in tags.items():
        client.set_model_version_tag(model, version.version, name, value)
    _show_with_model(client, evaluation, version)
    champion = _champion(client, model)
    if improved and (champion is None or champion.tags.get(_PROTOCOL_TAG) == protocol):
        _set_alias(client, model, protocol)
    return version


def _set_alias(client: MlflowClient, model: str, protocol: str) -> None:
    """Give the alias to the best of all versions that were measured alike.

    Of all, not of this one and the champion: evaluations that end at the same time then agree,
    whoever comes last.
    """
    alike = _versions(client, model, _PROTOCOL_TAG, protocol)
    improved = [each for each in alike if each.tags.get(_IMPROVED_TAG) != "false"]
    best = min(improved, key=lambda version: float(version.tags[_DISTANCE_TAG]))
    try:
        client.set_registered_model_alias(model, CHAMPION, best.version)
    except MlflowException:  # another one gave it for the first time in between
        client.set_registered_model_alias(model, CHAMPION, best.version)


def _versions(client: MlflowClient, model: str, tag: str, value: str) -> list[ModelVersion]:
    wanted = f"name='{model}' and tags.{tag}='{value}'"
    return [
        *client.search_model_versions(
            wanted, max_results=SEARCH_MODEL_VERSION_MAX_RESULTS_THRESHOLD
        )
    ]


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
    kept = {name: value for name, value in protocol.items() if name not in NOT_PROTOCOL}
    if kept.get("clean_sha256") is not None:
        del kept["noisy_sha256"]  # another draw of the noise on the same images
    kept["extractor"] = protocol["extractors"][protocol["features"]]
    return protocol_id(kept)


def _show_with_model(client: MlflowClient, evaluation: Run, version: ModelVersion) -> None:
    """Link the evaluation with the model, and repeat its numbers on MLflow's page of the model."""
    scheme, _, model_id = (version.source or "").rpartition("/")
    if scheme != "models:":  # registered by a person, from files
        return
    run_id = evaluation.info.run_id
    now = evaluation.info.end_time or evaluation.info.start_time
    numbers = [
        Metric(name, value, now, 0, model_id=model_id)
        for name, value in evaluation.data.metrics.items()
        if "generator" in name.split("/")
    ]
    client.log_batch(run_id, metrics=numbers)
    inputs = evaluation.inputs.model_inputs if evaluation.inputs else []
    if not any(each.model_id == model_id for each in inputs):
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])

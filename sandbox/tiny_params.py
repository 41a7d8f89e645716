"""Editing a workspace's params.yaml as a user would: values change, comments and order stay."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

TINY: Mapping[str, Any] = {
    "data.max_images": 300,
    "data.shard_size": 128,
    "corrupt.num_heldout": 60,
    "corrupt.workers": 1,
    "network.model_channels": 8,
    "network.channel_mult": [1],
    "network.attention_resolutions": [],
    "pretrain.batch_size": 32,
    "pretrain.kimg": 0.64,
    "pretrain.lr_warmup_kimg": 0.064,
    "pretrain.ema_halflife_kimg": 0.1,
    "pretrain.sample_every_kimg": 0.32,
    "distill.batch_size": 32,
    "distill.kimg": 0.32,
    "distill.ema_halflife_kimg": 0.1,
    "distill.selection.every_kimg": 0.16,
    "distill.selection.num_samples": 64,
    "evaluate.features": ["fashion-classifier"],
    "evaluate.num_samples": 64,
    "evaluate.sampler.num_steps": 4,
    "compute.device": "cpu",
    "compute.precision": "float32",
    "run.eval_batch_size": 64,
    "run.checkpoint_minutes": 0.001,
}
"""Values with which all five stages together compute for a few seconds."""


def set_params(root: Path, values: Mapping[str, Any]) -> None:
    """Set dotted keys in ``root``'s params.yaml; a key that is not there is an error."""
    yaml = YAML()
    path = root / "params.yaml"
    document = yaml.load(path.read_text())
    for key, value in values.items():
        *parents, name = key.split(".")
        section = document
        for parent in parents:
            section = section[parent]
        if name not in section:
            raise KeyError(key)
        section[name] = value
    with path.open("w") as stream:
        yaml.dump(document, stream)

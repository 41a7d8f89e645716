"""Named sets of values for ``params.yaml``: published settings, kept as files beside this one."""

from pathlib import Path
from typing import Any

from dsd.utils.errors import ParamsError
from pipeline.params.reader import leaves, load_params, read_mapping, update_params

__all__ = ["apply_preset", "load_preset", "preset_names"]

_FOLDER = Path(__file__).with_suffix("")


def preset_names() -> list[str]:
    """All presets, in alphabetical order."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """The values of a preset, and of the one that it ``extends``, by dotted key.

    Raises:
        ParamsError: There is no preset of that name.
    """
    if name not in preset_names():
        msg = f"no preset is called {name!r}; there are {', '.join(preset_names())}"
        raise ParamsError(msg)
    document = read_mapping(_FOLDER / f"{name}.yaml")
    base = document.pop("extends", None)
    inherited = {} if base is None else load_preset(base)
    return inherited | leaves(document)


def apply_preset(name: str, root: Path) -> dict[str, Any]:
    """Write a preset's values into ``root``'s params.yaml; comments and other values stay.

    Returns:
        The values that were different before, by dotted key.

    Raises:
        ParamsError: There is no such preset, or params.yaml is not valid before or after.
    """
    preset = load_preset(name)
    before = leaves(load_params(root).model_dump(mode="json"))
    changed = {key: value for key, value in preset.items() if before.get(key) != value}
    update_params(root, changed)
    return changed

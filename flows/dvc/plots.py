"""The library that draws the curves of ``dvc plots``: ``python -m flows.dvc.plots``.

DVC's own page fetches it from a server. Here it comes from a package and lies in the workspace,
where ``.dvc/plots.html`` looks for it, so the curves are there without a network. `make setup`
writes it.
"""

from pathlib import Path

from dsd.utils.files import published

__all__ = ["write_library"]

_FOR_DVC = "5.21"
"""The release of Vega-Lite whose language DVC's templates are written in."""


def write_library(root: Path) -> Path:
    """Write Vega with all that it needs into a workspace as one script, and return its place."""
    from vl_convert import javascript_bundle

    target = root / ".dvc" / "tmp" / "vega.js"
    code = javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_FOR_DVC)
    with published(target) as file:
        file.write(code.encode())
    return target


if __name__ == "__main__":
    write_library(Path.cwd())

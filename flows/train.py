"""Command line of the flow ``train``: ``python -m flows.train``.

Without a server the flow brings its own for as long as it runs; with ``prefect server start`` and
``PREFECT_API_URL=http://127.0.0.1:4200/api`` it reports there.
"""

import argparse
import sys
from collections.abc import Sequence

from flows.cli import flow_parser, run_flow

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the flow, and return the exit code."""
    description = (
        "Bring all stages up to date. With --set or --name the run is made in a copy of the "
        "workspace and kept as a DVC experiment; the workspace stays as it is."
    )
    parser = flow_parser("train", description, name="name of the experiment")
    setting = "a value instead of that in params.yaml; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=setting)
    parser.add_argument("--force", action="store_true", help="run all stages, even unchanged ones")
    options = parser.parse_args(arguments)
    return run_flow(lambda: _train(options))


def _train(options: argparse.Namespace) -> bool:
    # Late, because --help must not wait for Prefect, nor must a mistake.
    from flows.definitions.overrides import parse_settings
    from flows.runtime.environment import ROOT
    from pipeline.params.reader import preview_params

    values = parse_settings(options.set)
    preview_params(ROOT, values)
    from flows.definitions.train_flow import check_run, train
    from flows.services.prefect_server import prepare_own_server

    check_run(values, options.name, push=options.push)
    prepare_own_server()
    train(settings=options.set, name=options.name, force=options.force, push=options.push)
    return True


if __name__ == "__main__":
    sys.exit(main())

"""Command line of the flow ``sweep``: ``python -m flows.sweep --set KEY=VALUE,VALUE ...``.

With ``PREFECT_API_URL`` of a server that knows the deployment ``train``, its workers take the
runs; otherwise they run here, one after the other.
"""

import argparse
import sys
from collections.abc import Sequence

from flows.cli import flow_parser, run_flow

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the flow, and return the exit code."""
    description = (
        "Run all combinations of parameters, each as a DVC experiment, and compare them. The same "
        "sweep, started once more, computes only what is missing."
    )
    parser = flow_parser("sweep", description, name="folder of the comparison in reports/sweeps")
    values, text = (
        "KEY=VALUE,VALUE,...",
        "a parameter and the values that it takes; may be repeated",
    )
    parser.add_argument("--set", action="append", required=True, metavar=values, help=text)
    options = parser.parse_args(arguments)
    return run_flow(lambda: _sweep(options))


def _sweep(options: argparse.Namespace) -> bool:
    # Late, because --help must not wait for Prefect, nor must a mistake.
    from flows.definitions.overrides import parse_sweep_param

    grid = [parse_sweep_param(text) for text in options.set]
    from prefect.exceptions import FailedRun

    from flows.definitions.sweep_flow import check_sweep, sweep
    from flows.services.prefect_server import prepare_own_server

    check_sweep(grid, options.name, push=options.push)
    prepare_own_server()
    state = sweep(grid, name=options.name, push=options.push, return_state=True)
    error = state.result(raise_on_failure=False)
    if isinstance(error, Exception) and not isinstance(error, FailedRun):
        raise error
    print(state.message, file=sys.stderr)
    return state.is_completed()


if __name__ == "__main__":
    sys.exit(main())

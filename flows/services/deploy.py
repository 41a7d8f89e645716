"""Make this project known to a Prefect server: ``python -m flows.services.deploy``.

Creates the work pools and the deployments of prefect.yaml, which is the truth about them: what was
changed by hand in the UI, such as a schedule switched on, is set back. May be repeated.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from flows.runtime.environment import ROOT, stage_environment
from flows.services.prefect_server import ServerError, explained, named_server
from flows.services.reconcile import POOLS

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Create pools and deployments on the server of ``PREFECT_API_URL``; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.services.deploy",
        description="Create the work pools and the deployments of prefect.yaml.",
    )
    parser.parse_args(arguments)
    try:
        named_server()  # Prefect would deploy to a server that ends with the command
        _create_pools()
    except Exception as error:
        known = error if isinstance(error, ServerError) else explained(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        return 1
    # The command line reads prefect.yaml; the flows' code is found from the project's folder.
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    return subprocess.run(command, cwd=ROOT, env=stage_environment()).returncode


def _create_pools() -> None:
    """Create the pools of local processes that are not there yet."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            wanted = WorkPoolCreate(name=pool, type="process", base_job_template=template)
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(wanted)


if __name__ == "__main__":
    sys.exit(main())

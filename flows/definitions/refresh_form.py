"""Show the values of params.yaml in Prefect's form: ``python -m flows.definitions.refresh_form``.

Only the form changes; a schedule that was switched on in the UI stays as it is.
"""

import sys

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from flows.definitions.sweep_flow import DEPLOYMENT
from flows.definitions.train_flow import train

__all__ = ["main"]


def main() -> int:
    """Replace the form of the deployment ``train``; 0 also where there is none."""
    form = parameter_schema(train.fn).model_dump_for_openapi()
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return 0
        client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=form))
    return 0


if __name__ == "__main__":
    sys.exit(main())

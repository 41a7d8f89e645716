"""Prefect flows over the stages of dvc.yaml.

Importing this package switches telemetry off and keeps Prefect's files inside the project: both
must happen before Prefect reads its settings.
"""

from flows.runtime.environment import set_defaults

__all__: list[str] = []

set_defaults()

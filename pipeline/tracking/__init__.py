"""MLflow: runs, metrics, models."""

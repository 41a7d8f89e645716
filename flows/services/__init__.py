"""Prefect server, MLflow server and workers."""

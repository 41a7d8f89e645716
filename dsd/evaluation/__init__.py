"""Metrics that only the evaluation uses."""

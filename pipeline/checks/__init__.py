"""Checks before anything runs: ``python -m pipeline check`` and the start of each stage."""

"""Paths, logs and tables: a stage's inputs and outputs."""

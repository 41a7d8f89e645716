"""Runs on a small SLURM of two nodes, stopped in every way that SLURM has."""

"""Kills, soak tests and several machines."""

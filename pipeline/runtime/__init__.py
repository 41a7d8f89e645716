"""Processes, signals and network addresses, outside of the stages."""

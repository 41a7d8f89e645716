"""Environment and records of running flows."""

"""The generator's losses and training (DSD, Algorithm 1)."""

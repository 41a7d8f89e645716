"""The teacher's losses and training."""

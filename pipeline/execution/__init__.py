"""Running a training: devices, processes, checkpoints and locks."""

"""What the trainings do on a GPU: whether they are right, how fast, with how much memory."""

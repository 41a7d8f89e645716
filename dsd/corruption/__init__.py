"""The observation model, and estimates of the noise in observations."""

"""Raw networks F: they know nothing of what a noise level means."""

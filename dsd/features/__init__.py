"""Feature extractors for Frechet distances."""

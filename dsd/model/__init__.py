"""Denoisers, the one-step generator, noise levels and samplers."""

"""Readers of image files: what stage ``prepare`` needs."""

"""Denoising score distillation: one-step image generators from noisy images alone."""

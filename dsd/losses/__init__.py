"""Losses as pure functions of tensors: one value for each sample, no modules built."""

"""Measurements that are run by hand; their results lie below docs/results."""

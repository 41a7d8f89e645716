"""Mutants and the audit of dependencies."""

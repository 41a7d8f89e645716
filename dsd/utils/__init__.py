"""Errors, files, random numbers and types that everything uses."""

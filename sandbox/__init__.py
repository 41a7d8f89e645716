"""Throw-away projects, ports and faults, for tests and bench.

No part of the product.
"""

from pathlib import Path

__all__ = ["ROOT"]

ROOT = Path(__file__).parents[1]
"""The root of this repository."""

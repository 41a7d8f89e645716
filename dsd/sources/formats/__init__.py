"""Formats of image files: one module for each, behind one interface (``stack``)."""

"""Running DVC, its experiments and its locks."""

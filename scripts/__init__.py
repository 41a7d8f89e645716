"""Scripts that made what is committed; run once."""

"""Linear observation operators and their masks."""

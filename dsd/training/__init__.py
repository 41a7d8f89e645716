"""Training loops as generators that yield typed records."""

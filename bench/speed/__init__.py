"""How fast everything is, against a plain way, the reference code and the machine's limits."""

"""Proximal FID, which chooses a generator without clean images."""

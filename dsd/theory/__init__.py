"""Cases with a closed form, for tests and studies."""

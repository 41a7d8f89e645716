"""Reading, checking and documenting params.yaml."""

"""The five stages of dvc.yaml."""

"""One thin module for each stage of dvc.yaml; the only reader of YAML, the only MLflow."""

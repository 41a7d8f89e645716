"""The paper's theorem and toys, which need no data and no params.yaml."""

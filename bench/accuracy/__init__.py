"""Studies of metrics and estimates."""

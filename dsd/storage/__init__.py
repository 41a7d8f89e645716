"""The prepared layout on disk: shards of images."""

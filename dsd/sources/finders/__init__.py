"""What finds the images of each ``data.source``."""

"""Tasks: on which the book tries its layers."""

"""Tasks on which the book trains its layers."""

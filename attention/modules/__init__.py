"""Layers: modules with weights that learn."""

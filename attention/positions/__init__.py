"""Position embeddings: absolute and rotary."""

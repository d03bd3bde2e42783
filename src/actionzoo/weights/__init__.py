"""Weights files: where they are, what they are, and how they get into a network."""

"""Weights that a training run starts from."""

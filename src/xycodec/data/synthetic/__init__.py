"""Synthetic speech as a corpus."""

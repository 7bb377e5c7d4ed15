"""Distances between a decoding and its original, and between transcripts."""

"""Measuring codecs."""

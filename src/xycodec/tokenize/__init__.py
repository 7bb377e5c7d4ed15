"""Codes of whole corpora."""

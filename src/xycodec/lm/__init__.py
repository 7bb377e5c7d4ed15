"""Codes for language models: patterns, vocabularies, and token stores as datasets."""

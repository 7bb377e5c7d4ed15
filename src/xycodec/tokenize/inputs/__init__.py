"""Inputs of tokenization: files, manifests, archives and tables, as clips that are listed first and opened later."""

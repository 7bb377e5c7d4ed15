"""Evaluation of speech that language models of codes make of text."""

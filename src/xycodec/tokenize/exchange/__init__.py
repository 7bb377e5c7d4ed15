"""Stores of tokens in forms that other programs read and write, a file a form."""

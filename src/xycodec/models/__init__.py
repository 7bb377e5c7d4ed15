"""Codecs: one interface (`base`), the models, and windowed long audio (`longform`)."""

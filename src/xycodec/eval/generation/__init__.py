"""Evaluation of generated audio against a reference set: music, sounds."""

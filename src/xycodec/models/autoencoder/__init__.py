"""Autoencoders without a quantizer, which show how much of the voice a frozen encoder keeps."""

"""Files: audio, codes, settings, folders, the model hub, and work over many of them."""

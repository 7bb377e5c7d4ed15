"""Training losses, which are also distances between waveforms."""

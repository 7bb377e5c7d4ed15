"""The sample rate of speech."""

SPEECH_RATE = 16_000
"""Hz: what codecs and judges hear. Only what is decoded, and what it is trained on, may have another rate."""

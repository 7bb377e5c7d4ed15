"""Models that judge a decoding."""

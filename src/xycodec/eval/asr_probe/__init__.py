"""The ASR probe: how well a small recogniser reads words from a frozen codec."""

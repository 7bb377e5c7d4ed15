"""SpeechTokenizer: a codec whose first codebook learns what HuBERT hears (arXiv 2308.16692)."""

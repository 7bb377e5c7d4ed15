"""XY-Tokenizer: two Whisper-style towers, one residual quantizer, an acoustic decoder and Vocos."""

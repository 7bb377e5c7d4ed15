"""What a language model needs to learn tokens: patterns, vocabularies, and stores as datasets."""

"""The store of tokens: a corpus as codes on disk, mapped and never loaded (docs/token_store.md)."""

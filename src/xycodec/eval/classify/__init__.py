"""Classification of clips by a small probe on a frozen codec's features: the ARCH benchmark, and any labelled clips."""

"""Other codecs behind the interface of ours, for comparison."""

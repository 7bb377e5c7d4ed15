"""Matrix products and convolutions whose results no number of threads changes."""

"""Training: recipes to runs, runs to codecs."""

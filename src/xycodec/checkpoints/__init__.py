"""Load and save weights, in every published layout and in ours."""

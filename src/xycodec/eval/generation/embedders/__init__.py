"""Networks that turn clips into vectors, each in the layout of its published weights."""

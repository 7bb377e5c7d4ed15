"""X-Codec: a convolutional autoencoder and the features of a self-supervised model, quantized together."""

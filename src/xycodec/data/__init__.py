"""Data from corpora to training batches: manifests, sources, clips, augmentation, and a stream that resumes exactly."""

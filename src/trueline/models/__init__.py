"""Models: a native decoder that reads and writes the Hugging Face layout, scalar heads, fingerprints."""

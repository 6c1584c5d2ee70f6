"""A nanoGPT-style run, importable as `nanogpt.train` from the folder of nanogpt.yaml."""

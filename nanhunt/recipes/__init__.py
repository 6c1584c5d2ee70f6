"""Precision recipes: what a run is computed and stored in, as a named choice, and how that is emulated."""

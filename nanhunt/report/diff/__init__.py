"""Pages of a comparison of two traces: one file a format, and the words that they share."""

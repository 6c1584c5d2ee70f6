"""Training programs that fail for a known reason, and how often the report says which."""

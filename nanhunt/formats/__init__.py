"""Number formats, a value's fate in each, and the headroom that a tensor has in them. Standard library only."""

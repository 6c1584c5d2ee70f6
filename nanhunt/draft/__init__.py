"""The draft of a `nanhunt.yaml`: what a checkpoint shows, what the source beside it suggests, written down.

`shown` reads the checkpoint, `keys` finds its parts where the layout is unknown, `source` parses Python files without
importing them, `guess` matches the two, `sections` makes the config's keys of it, `text` writes them, `ask` puts the
questions at a terminal.
"""

"""The draft of a `nanhunt.yaml`: what a checkpoint shows, what the source beside it suggests, written down.

`shown` reads the checkpoint, `keys` finds its parts where the layout is unknown, `optimizer` tells classes by their state.
`source` parses Python files without importing them, `guess` matches both. `code` and `loop` make the config's keys,
`sections` puts them together, `text` writes them, `ask` puts the questions at a terminal.
"""

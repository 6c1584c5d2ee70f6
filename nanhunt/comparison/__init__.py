"""Two traces of what should be the same run: rows that belong together, what rounding explains of them, where they part.

`compare.compare` is the way in; it returns a `Comparison`, which `nanhunt.report.diff` prints. The bounds are derived in
`docs/diff.md`.
"""

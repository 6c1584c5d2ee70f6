"""The comparison for scripts: one JSON document, complete, non-finite numbers as strings."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, ClassVar

from nanhunt.comparison.comparison import Comparison
from nanhunt.report.diff.reading import headline
from nanhunt.report.json import plain
from nanhunt.report.options import Options

__all__ = ["DIFF_SCHEMA", "DiffJson", "document"]

#: Version of the document; keys are added without a new one, a key that changes or goes needs one.
#: 1 - first one.
DIFF_SCHEMA = 1


class DiffJson(Options):
    """The document of `document`, indented; ASCII, so that it survives any pipe. `nanhunt/schema/diff.schema.json` is its shape."""

    __slots__ = ()
    name: ClassVar[str] = "json"
    suffix: ClassVar[str] = ".json"

    def render(self, comparison: Comparison) -> str:
        """Return the document as text."""
        return json.dumps(document(comparison), indent=2, allow_nan=False) + "\n"


def document(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON values; non-finite numbers are "NaN", "Infinity" and "-Infinity"."""
    head = {"schema_version": DIFF_SCHEMA, "summary": headline(comparison)}
    renamed = [{"a": a, "b": b} for a, b in comparison.renamed]
    sides = {
        name: asdict(side)
        | {"sites": [dict(zip(("role", "module", "name"), site, strict=True)) for site in side.sites]}
        for name, side in (("alone_a", comparison.alone_a), ("alone_b", comparison.alone_b))
    }
    first = None if comparison.first is None else asdict(comparison.first)
    body: dict[str, Any] = plain(head | asdict(comparison) | {"first": first, "renamed": renamed} | sides)
    return body

"""The shape of the comparison's JSON document, as a JSON schema that is made from the values that it is made of.

`python -m nanhunt.report.diff.schema` writes it to `nanhunt/schema/diff.schema.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from nanhunt.comparison.comparison import Comparison
from nanhunt.report.diff.json import DIFF_SCHEMA

__all__ = ["DIFF_SCHEMA_FILE", "diff_schema"]

DIFF_SCHEMA_FILE = Path(__file__).parents[2] / "schema" / "diff.schema.json"
#: JSON has no NaN and no infinity: they are spelt out.
_NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
_TEXT = {"type": "string"}


def diff_schema() -> dict[str, Any]:
    """Return the schema of what `--format json` prints."""
    body: dict[str, Any] = _spelt(TypeAdapter(Comparison).json_schema())
    head = {"schema_version": {"const": DIFF_SCHEMA}, "summary": _TEXT}
    first = {"anyOf": [{"$ref": "#/$defs/Difference"}, {"type": "null"}]}
    body["properties"] = head | body["properties"] | {"first": first, "renamed": _listed("a", "b")}
    body["$defs"]["Alone"]["properties"]["sites"] = _listed("role", "module", "name")
    body["required"] = list(body["properties"])
    for shape in (body, *body["$defs"].values()):
        shape["required"] = list(shape["properties"])
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "nanhunt diff --format json"}
    return dialect | {key: value for key, value in body.items() if key != "title"}


def _listed(*names: str) -> dict[str, Any]:
    item = {"type": "object", "properties": dict.fromkeys(names, _TEXT), "required": list(names)}
    return {"type": "array", "items": item}


def _spelt(shape: Any) -> Any:
    """Return a schema in which every number may be spelt out, without titles and defaults."""
    if isinstance(shape, dict):
        if shape.get("type") == "number":
            return _NUMBER
        return {key: _spelt(value) for key, value in shape.items() if key not in ("title", "default")}
    return [_spelt(value) for value in shape] if isinstance(shape, list) else shape


if __name__ == "__main__":
    DIFF_SCHEMA_FILE.write_text(json.dumps(diff_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

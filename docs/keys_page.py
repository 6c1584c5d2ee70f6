"""Makes docs/config-keys.md: every key that `nanhunt.yaml` may have, from the schema that the reader itself checks by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from nanhunt.training.config import json_schema

__all__ = ["keys_page"]

HEAD = """\
# The keys of `nanhunt.yaml`

Only `data` must be there. A `model` may be left out beside a checkpoint whose folder has a config.json, and a section
that has one value may be written as that value: `model: train:build_model` is `model: {call: train:build_model}`. Import strings
are `package.module:attribute` or `path/to/file.py:attribute`, looked up from the config's folder first. An unknown key or
a wrong type is answered with file, line and the nearest key. [From a checkpoint](from-a-checkpoint.md) shows them in use;
editors complete them from `nanhunt/schema/nanhunt.schema.json`.

| key | default | what |
| --- | --- | --- |
"""


def keys_page() -> str:
    """Return the page."""
    schema = json_schema()
    rows = keys(schema, schema["$defs"], "")
    return HEAD + "".join(f"| `{key}` | {default} | {what} |\n" for key, default, what in rows)


def keys(node: dict[str, Any], defs: dict[str, Any], above: str) -> Iterator[tuple[str, str, str]]:
    """Yield (key, default, meaning) of an object's keys, each followed by those below it."""
    for name, body in node.get("properties", {}).items():
        forms = list(_forms(body, defs))
        below = next((f for f in forms if "properties" in f), {})
        choices = next((f["enum"] for f in forms if "enum" in f), [])
        # a section of several keys says itself what it is for
        what = body.get("description") or below.get("description", "")
        told = [what.rstrip(".")] if what else []
        told += [", ".join(f"`{c}`" for c in choices)] if choices else []
        default = body.get("default")
        written = f"`{json.dumps(default)}`" if default not in (None, {}, []) and not isinstance(default, dict) else ""
        yield f"{above}{name}", written, ": ".join(told).replace("|", "\\|")
        yield from keys(below, defs, f"{above}{name}.")


def _forms(node: dict[str, Any], defs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the forms that a value may have, references followed."""
    if "$ref" in node:
        yield from _forms(defs[node["$ref"].rpartition("/")[2]], defs)
    elif "anyOf" in node or "oneOf" in node:
        for form in node.get("anyOf", node.get("oneOf", [])):
            yield from _forms(form, defs)
    else:
        yield node

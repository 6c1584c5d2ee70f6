"""Read a JSON file that lies beside a checkpoint's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nanhunt.errors import CheckpointError

__all__ = ["read_json"]


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; {} where there is none, or no object in it.

    Raises CheckpointError where it is no JSON.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}", hint="use an earlier checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return content if isinstance(content, dict) else {}

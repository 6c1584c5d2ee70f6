"""What the terminal is: its width, and whether it wants colour."""

from __future__ import annotations

import os
import shutil
import sys

__all__ = ["color_wanted", "terminal_width"]


def terminal_width() -> int:
    """Return the columns of the terminal; 100 where the output is piped and COLUMNS does not say."""
    return shutil.get_terminal_size((100, 24)).columns


def color_wanted() -> bool:
    """Whether to write colours: to a terminal, or where FORCE_COLOR is set and not empty; never with NO_COLOR.

    As rich decides: an empty FORCE_COLOR forbids colours, and a TERM of dumb or unknown has none to show.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    forced = os.environ.get("FORCE_COLOR")
    return sys.stdout.isatty() if forced is None else forced != ""

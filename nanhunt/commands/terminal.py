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
    """Whether stdout is a terminal that wants colour (NO_COLOR, TERM=dumb)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

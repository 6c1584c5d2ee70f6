"""What `nanhunt run` tells the process that it starts, and what that process tells it: one line of JSON each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Settings", "Told", "read_told"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the script is recorded; travels in an environment variable that the script does not see."""

    #: folder of bundles, absolute
    out: str
    #: the file that the process writes what it has to tell into
    told: str
    every: int = 100
    keep: int = 2
    #: process id of `nanhunt run`, which the script does not outlive
    parent: int = 0

    def text(self) -> str:
        """Return the settings as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Settings:
        """Return the settings that a line holds."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Something that the recorded process tells: a bundle that it wrote, or how far it came."""

    #: folder of a bundle; '' where the line is about something else
    bundle: str = ""
    #: what the bundle lacks for a replay; '' where nothing
    lacks: str = ""
    #: training steps that were recorded up to the end, and whether torch was there at all
    steps: int | None = None

    def write(self, path: str) -> None:
        """Add the line to the file."""
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(self)) + "\n")


def read_told(path: Path) -> list[Told]:
    """Return the whole lines of a file; the last may be cut short by a kill."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(Told(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found

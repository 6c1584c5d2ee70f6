"""Makes docs/projects.md: the worked examples of configs/projects/, each from the head of its own nanhunt.yaml."""

from __future__ import annotations

from pathlib import Path

from configs_page import CONFIGS, Recipe, anchor, links_in, read, section
from figures import table

__all__ = ["projects_page"]

PROJECTS = CONFIGS / "projects"

HEAD = """\
# Projects people have

Folders that run: each holds a `train.py` as users of that framework write one, and the `nanhunt.yaml` that replays it. The
models are small, the data is drawn or is text that Python itself carries, and nothing is downloaded. Each script saves
checkpoints and logs its losses; the replay starts from one of them, and its losses are those of the run. To start from
one, copy its `nanhunt.yaml` beside your own code and put your own names into the import strings. A nanoGPT-style script, and
recipes of known models, are in [configs.md](configs.md).
"""


def projects_page() -> str:
    """Return the page."""
    found = [read(path, path.parent.name) for path in sorted(PROJECTS.glob("*/nanhunt.yaml"))]
    rows = [[f"[`{p.name}`](#{anchor(p.name)})", p.title.rstrip("."), ", ".join(links_in(p.source))] for p in found]
    return "\n\n".join([HEAD.strip(), table(["folder", "what it shows", "source"], rows), *map(_section, found)]) + "\n"


def _section(project: Recipe) -> str:
    folder: Path = Path("..") / "configs" / "projects" / project.name
    return section(project) + f"\n\nThe script: [`train.py`]({folder.as_posix()}/train.py)."

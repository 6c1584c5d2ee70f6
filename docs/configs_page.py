"""Makes docs/configs.md: the recipes of configs/, each from its own file, with its source.

A recipe's comment at its head is what the page says of it: a sentence, two commands, what to know, and a paragraph that
begins with `Source:`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from figures import table

__all__ = ["CONFIGS", "Recipe", "anchor", "configs_page", "links_in", "read", "recipes", "section"]

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

#: the order of the page; one that is not named here comes last
ORDER = ("llama3", "deepseek-v3", "qwen2.5-small", "mistral", "clip-global-norm", "clip-by-value", "clip-per-parameter")

HEAD = """\
# Recipes

Files that run: each is a `nanhunt.yaml` for a training recipe that people use, with a small model of that family (one to
three million parameters, pure torch, in `configs/llm`), on the text that Python itself carries. Two commands train one for
some steps and replay it; nothing is downloaded. To start from one, copy it beside your own code, put your own import strings
in the place of `llm.…`, and keep the numbers. Comments say what they are in the source.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A file of configs/, its head taken apart."""

    name: str
    title: str
    commands: tuple[str, ...]
    prose: tuple[str, ...]
    source: str
    #: the file without its head
    body: str


def configs_page() -> str:
    """Return the page."""
    found = recipes()
    rows = [[f"[`{r.name}`](#{anchor(r.name)})", r.title.rstrip("."), ", ".join(links_in(r.source))] for r in found]
    return "\n\n".join([HEAD.strip(), table(["file", "recipe", "source"], rows), *map(section, found)]) + "\n"


def recipes() -> list[Recipe]:
    """Return every recipe, in the page's order. Raises ValueError for one whose head lacks a part."""
    files = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}
    names = [name for name in ORDER if name in files]
    return [read(files[name], files[name].name) for name in [*names, *(name for name in files if name not in names)]]


def read(path: Path, name: str) -> Recipe:
    """Return a file's recipe under a name."""
    lines = path.read_text().splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    head = [line.removeprefix("#").removeprefix(" ") for line in lines[:end]]
    commands = tuple(line.strip() for line in head if line.startswith("  "))
    blocks = "\n".join("" if line.startswith("  ") else line for line in head).split("\n\n")
    paragraphs = [" ".join(block.split()) for block in blocks if block.strip()]
    sources = [p.removeprefix("Source: ") for p in paragraphs if p.startswith("Source: ")]
    if len(sources) != 1 or not commands:
        raise ValueError(
            f"{path}: its head needs commands, indented by two, and one paragraph that begins with `Source: `"
        )
    prose = tuple(p for p in paragraphs[1:] if not p.startswith("Source: "))
    body = "\n".join(lines[end:]).strip()
    return Recipe(name=name, title=paragraphs[0], commands=commands, prose=prose, source=sources[0], body=body)


def section(recipe: Recipe) -> str:
    """Return a recipe's part of the page."""
    commands = "\n".join(recipe.commands)
    prose = "\n\n".join(recipe.prose)
    return (
        f"## {recipe.name}\n\n{recipe.title}\n\n```\n{commands}\n```\n\n{prose}\n\nSource: {linked(recipe.source)}\n\n"
        f"```yaml\n{recipe.body}\n```"
    )


def linked(text: str) -> str:
    """Return a text whose arXiv numbers are links."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def links_in(text: str) -> list[str]:
    """Return the sources that a text names: its arXiv numbers and addresses, each once, as links."""
    found = re.findall(r"arXiv \d{4}\.\d{4,5}|https://\S+[^\s,.)]", text)
    return [linked(source) if source.startswith("arXiv") else f"<{source}>" for source in dict.fromkeys(found)]


def anchor(title: str) -> str:
    """Return what a heading's link is called."""
    return re.sub(r"[^\w-]", "", title.lower())

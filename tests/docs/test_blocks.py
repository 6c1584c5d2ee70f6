"""What README and docs/ show as Python compiles, as YAML is read, and as a config is accepted by the reader of configs."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import nanhunt
from nanhunt.training.config import RunConfig, load_config
from tests.docs.pages import PAGES, Block, blocks

PYTHON = [b for page in PAGES for b in blocks(page) if b.language == "python"]
YAML = [b for page in PAGES for b in blocks(page) if b.language in ("yaml", "yml")]


def program(block: Block) -> str:
    """The block as Python: the line numbers of an excerpt cut off, the levels above it too."""
    lines = block.text.splitlines()
    numbered = all(re.match(r" *\d+(  |$)", line) for line in lines)
    return textwrap.dedent("\n".join(re.sub(r"^ *\d+(  )?", "", line) if numbered else line for line in lines))


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of what a program takes from nanhunt."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nanhunt":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "nanhunt":
            yield "nanhunt", node.attr


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles_and_what_it_imports_from_nanhunt_is_there(block: Block) -> None:
    tree = ast.parse(program(block), str(block))
    for module, attribute in imported(tree):
        assert attribute in defined(module), f"{module} has no {attribute}"


def defined(module: str) -> set[str]:
    """What a module offers, read and not imported: an integration would bring its framework, ten seconds of it."""
    if module == "nanhunt":
        return set(nanhunt.__all__)
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


@pytest.mark.parametrize("block", [b for b in PYTHON if "nanhunt.Recorder(" in b.text], ids=str)
def test_a_recorder_is_given_what_it_takes(block: Block) -> None:
    nodes = [node for node in ast.walk(ast.parse(program(block))) if isinstance(node, ast.Call)]
    calls = [node for node in nodes if ast.unparse(node.func) == "nanhunt.Recorder"]
    assert calls
    for call in calls:
        keywords = {keyword.arg or "": None for keyword in call.keywords}
        bound = inspect.signature(nanhunt.Recorder).bind(*call.args, **keywords)
        assert {"model", "optimizer"} <= bound.arguments.keys()


def configs(block: Block) -> Iterator[str]:
    """The block as configs: where a key stands twice, each entry is an alternative and a config of its own."""
    entries = re.split(r"(?m)^(?=[a-z_]+:)", block.text)[1:]
    keys = [entry.partition(":")[0] for entry in entries]
    for text in [block.text] if len(set(keys)) == len(keys) else entries:
        yield text if re.search(r"(?m)^data:", text) else f"data: train:batches\n{text}"


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_is_a_config_that_the_reader_of_configs_accepts(block: Block, tmp_path: Path) -> None:
    for text in configs(block):
        assert set(yaml.safe_load(text)) <= set(RunConfig.model_fields)
        path = tmp_path / "nanhunt.yaml"
        path.write_text(text)
        load_config(path)

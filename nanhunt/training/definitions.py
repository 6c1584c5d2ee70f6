"""The definitions of a script that trains, or reads its arguments, as soon as it is imported, without what it does.

What is taken. Imports, classes, functions, names for other names, and literals at the top of the file; imports inside of
`try` and `if` too. Then the plain values that the recorded run had in the globals that these use: a size that was
computed from data, an option from the command line. All else (reading data, training) is left out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from nanhunt.errors import ConfigError
from nanhunt.training.spelled import value_of

__all__ = ["is_importable", "load_definitions", "parsed"]

#: Names that read the command line: argparse's, Hugging Face's parser, `sys.argv`, `tyro.cli`.
_ARGUMENTS = {"argv", "cli", "parse_args", "parse_args_into_dataclasses", "parse_known_args"}
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def parsed(file: Path) -> ast.Module:
    """Return a script's syntax tree. Raises ConfigError where it is not there, or is no Python."""
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"model: {file} of the recorded run cannot be read: {error}") from error


def is_importable(tree: ast.Module) -> bool:
    """Whether a script keeps what it does under `if __name__ == "__main__":`, the reading of its arguments too."""
    body = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    guards = [node for node in body if isinstance(node, ast.If) and _is_guard(node)]
    names = {
        getattr(inner, "attr", None) or getattr(inner, "id", None)
        for node in body
        if node not in guards
        for inner in ast.walk(node)
    }
    return bool(guards) and names.isdisjoint(_ARGUMENTS)


def load_definitions(name: str, file: Path, values: Mapping[str, Any]) -> ModuleType:
    """Make a module of a script's definitions, under its name in `sys.modules`, and return it.

    `values` are globals of the recorded run, spelled as a bundle has them. A definition that cannot be made (its decorator needs what is left out)
    is left out as well. Raises ConfigError where the script cannot be read; what an import raises passes.
    """
    tree = parsed(file)
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    module.__package__ = name.rpartition(".")[0]
    namespace = vars(module)
    # a default argument or a base class may use them; those whose class the script defines come with it
    _put(values, namespace)
    for node in tree.body:
        if not _is_definition(node):
            continue
        single = ast.Module(body=[node], type_ignores=[])
        code = compile(single, str(file), "exec", flags=_future(tree), dont_inherit=True)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(code, namespace)
            continue
        try:
            exec(code, namespace)
        except Exception:  # whatever a decorator or a base class raises: who needs the name misses it by name
            continue
    _put(values, namespace)
    return module


def _put(values: Mapping[str, Any], namespace: dict[str, Any]) -> None:
    for name, spelled in values.items():
        try:
            namespace[name] = value_of(spelled)
        except AttributeError:  # of a class that is not defined yet
            continue


def _future(tree: ast.Module) -> int:
    """Return the compiler's flags that the script's `from __future__` lines set."""
    import __future__

    names = [a.name for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__" for a in n.names]
    flags = 0
    for name in names:
        flags |= getattr(__future__, name).compiler_flag
    return flags


def _is_definition(node: ast.stmt) -> bool:
    if isinstance(node, _DEFINITIONS):
        return True
    if isinstance(node, ast.Assign):
        return all(isinstance(t, (ast.Name, ast.Tuple)) for t in node.targets) and _is_name_or_literal(node.value)
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.target, ast.Name) and node.value is not None and _is_name_or_literal(node.value)
    if isinstance(node, ast.Try):
        parts = [*node.body, *node.orelse, *node.finalbody, *(n for handler in node.handlers for n in handler.body)]
        return _imports(parts)
    if isinstance(node, ast.If):
        return not _is_guard(node) and _imports([*node.body, *node.orelse])
    return False


def _imports(nodes: list[ast.stmt]) -> bool:
    """Whether statements do nothing but import, define, or name literals."""
    return all(isinstance(node, ast.Pass) or _is_definition(node) for node in nodes)


def _is_name_or_literal(value: ast.expr) -> bool:
    if isinstance(value, ast.Name):
        return True
    if isinstance(value, ast.Attribute):
        return _is_name_or_literal(value.value) and isinstance(value.value, (ast.Name, ast.Attribute))
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _is_guard(node: ast.If) -> bool:
    return "__name__" in ast.unparse(node.test)

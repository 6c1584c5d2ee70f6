"""Of the script itself what a replay needs: its file, and the values that its definitions find among its globals."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import Tensor, nn

from nanhunt.recorder.code import CodeRef, code_ref
from nanhunt.recorder.script.likeness import Object, likeness
from nanhunt.recorder.script.spelling import Speller, UnspelledError
from nanhunt.training.definitions import is_importable, parsed
from nanhunt.training.user_code import is_installed_module

__all__ = ["main_script"]


def main_script(speller: Speller, refs: Mapping[str, CodeRef | None]) -> dict[str, Any]:
    """Return {module's name: {file, globals, unkept}} of a script without a guard that the bundle names; {} of others.

    `unkept` are globals that its classes use, and that no bundle holds.
    """
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or not _is_named(refs, main):
        return {}
    tree = parsed(Path(file))
    if is_importable(tree):
        return {}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    used, wanted = _names_in([*classes, *functions]), _names_in(classes)
    values: dict[str, Any] = {}
    unkept: list[str] = []
    for name in sorted(used & vars(main).keys()):
        value = vars(main)[name]
        if name.startswith("__") or isinstance(value, (type, ModuleType)) or _is_defined(value, main):
            continue
        try:
            values[name] = _spelled(speller, value)
        except UnspelledError:
            unkept += [name] if name in wanted else []
    return {_name_of(main): {"file": str(Path(file).resolve()), "globals": values, "unkept": unkept}}


def _is_named(refs: Mapping[str, CodeRef | None], main: ModuleType) -> bool:
    """Whether an import string of the bundle leads to the script."""
    prefix = f"{_name_of(main)}:"
    return any(ref is not None and prefix in repr(ref.spec) for ref in refs.values())


def _name_of(main: ModuleType) -> str:
    """Return the name that import strings have for the script."""

    def probe() -> None: ...

    probe.__module__, probe.__qualname__ = "__main__", "probe"
    ref = code_ref(probe)
    return ref.call.partition(":")[0] if ref is not None else "__main__"


def _names_in(nodes: list[Any]) -> set[str]:
    """Return the names that definitions look up."""
    tree = ast.Module(body=nodes, type_ignores=[])
    return set(_looked_up(compile(tree, "<definitions>", "exec", dont_inherit=True)))


def _looked_up(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _looked_up(constant)


def _is_defined(value: Any, main: ModuleType) -> bool:
    """Whether a value is a function, which the definitions hold or an import brings."""
    return callable(value) and hasattr(value, "__qualname__") and not isinstance(value, nn.Module)


def _spelled(speller: Speller, value: Any) -> Any:
    """Return a global's spelling: data, or an object of data whose class is the user's own, or argparse's."""
    if isinstance(value, (nn.Module, Tensor)):
        raise UnspelledError("no data")
    copy = likeness(value)
    if isinstance(copy, Object):
        module = sys.modules.get(copy.kind.__module__)
        is_plain = copy.kind.__module__ in ("argparse", "types", "__main__")
        if module is None or not (is_plain or not is_installed_module(module)):
            raise UnspelledError("an object of a library")
    return speller.value(copy)

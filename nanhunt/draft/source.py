"""What the Python files around a checkpoint define, read with `ast` alone: nothing of the user's is imported or run."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Definition", "definitions_in", "source_files", "target_of"]

#: Folders that hold no training code.
_SKIPPED = {"__pycache__", "node_modules", "site-packages", "venv", "build", "dist", "tests", "test", "docs", "wandb"}
#: Files that are parsed, and bytes of one: a home directory full of checkouts must not take minutes.
_MOST_FILES, _MOST_BYTES = 200, 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A function, class, method or object at the top of a file, as an import string would name it."""

    #: "train:build_model", "model:GPT.configure_optimizers"
    spec: str
    #: the part behind the colon
    name: str
    file: Path
    line: int
    kind: Literal["function", "class", "method", "object"]
    #: parameters without a default, `self` left out
    required: tuple[str, ...] = ()
    #: parameters that may be given by name; None where there is a `**kwargs`, which takes any
    accepted: frozenset[str] | None = frozenset()
    #: names at the end of a class's bases, of a function's return annotation, or of what it returns a call of
    leads_to: frozenset[str] = frozenset()
    is_generator: bool = False
    #: names of classes and functions that its body calls
    calls: frozenset[str] = frozenset()
    #: the line that trains, or reads the command line, when the file is imported
    runs_at: int | None = None


def source_files(folders: Iterable[Path]) -> list[Path]:
    """Return the Python files of these folders and of the folders right below them, the nearest first."""
    found: dict[Path, None] = {}
    for folder in dict.fromkeys(f.resolve() for f in folders):
        below = [d for d in _entries(folder) if d.is_dir() and not d.name.startswith(".") and d.name not in _SKIPPED]
        for place in (folder, *below):
            found |= dict.fromkeys(p for p in _entries(place) if p.suffix == ".py" and _is_parsed(p))
    return list(found)[:_MOST_FILES]


def definitions_in(file: Path, root: Path) -> list[Definition]:
    """Return what a file defines at its top, by import strings that are looked up from `root`; [] of what is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return []
    target, runs_at = target_of(file, root), _runs_at(tree)
    if target is None:
        return []
    found: list[Definition] = []
    for node in tree.body:
        for name, inner, kind in _named(node):
            found.append(_definition(inner, f"{target}:{name}", name, file, kind, runs_at))
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _is_parsed(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size <= _MOST_BYTES and path.name not in ("setup.py", "conftest.py")
    except OSError:
        return False


def target_of(file: Path, root: Path) -> str | None:
    """Return the file as an import string's first half: a dotted name below `root`, else a path; None of an odd name."""
    relative = Path(os.path.relpath(file, root))
    parts = relative.with_suffix("").parts
    if all(part.isidentifier() for part in parts):
        return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
    return relative.as_posix() if str(relative).isprintable() and ":" not in str(relative) else None


_Kind = Literal["function", "class", "method", "object"]


def _named(node: ast.stmt) -> Iterator[tuple[str, ast.stmt, _Kind]]:
    """Yield what a statement at the top defines: a function, a class and its methods, or an object that a call makes."""
    if isinstance(node, ast.FunctionDef):
        yield node.name, node, "function"
    elif isinstance(node, ast.ClassDef):
        yield node.name, node, "class"
        methods = (inner for inner in node.body if isinstance(inner, ast.FunctionDef))
        yield from ((f"{node.name}.{inner.name}", inner, "method") for inner in methods)
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        yield from ((target.id, node, "object") for target in node.targets if isinstance(target, ast.Name))


def _definition(
    node: ast.stmt, spec: str, name: str, file: Path, kind: _Kind, runs_at: int | None
) -> Definition:  # fmt: skip
    function, leads_to = node, set[str]()
    if isinstance(node, ast.ClassDef):
        leads_to = {_last_name(base) for base in node.bases}
        inits = (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
        function = next(inits, node)
    elif isinstance(node, ast.FunctionDef):
        leads_to = set(_returned(node))
    elif isinstance(node, ast.Assign):
        leads_to = {_last_name(node.value)}
    required, accepted = _parameters(function, is_bound=isinstance(node, ast.ClassDef))
    return Definition(
        spec=spec,
        name=name,
        file=file,
        line=node.lineno,
        kind=kind,
        required=required,
        accepted=accepted,
        leads_to=frozenset(leads_to - {""}),
        is_generator=isinstance(node, ast.FunctionDef) and any(isinstance(n, ast.Yield | ast.YieldFrom) for n in _own(node)),
        calls=frozenset(_last_name(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)),
        runs_at=runs_at,
    )  # fmt: skip


def _parameters(node: ast.stmt, *, is_bound: bool) -> tuple[tuple[str, ...], frozenset[str] | None]:
    """Return the parameters without a default, and those that may be named; a class without `__init__` takes any."""
    if not isinstance(node, ast.FunctionDef):
        return (), None if isinstance(node, ast.ClassDef) else frozenset()
    arguments = node.args
    positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    without = len(positional) - len(arguments.defaults)
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required = [*positional[:without], *(a.arg for a, default in named if default is None)]
    drop = 1 if is_bound else 0
    accepted = frozenset([*(a.arg for a in arguments.args[drop:]), *(a.arg for a in arguments.kwonlyargs)])
    return tuple(required[drop:]), None if arguments.kwarg else accepted


def _returned(node: ast.FunctionDef) -> Iterator[str]:
    """Yield the last names of the return annotation, and of calls that are returned, under a name of their own too."""
    if node.returns is not None:
        text = node.returns.value if isinstance(node.returns, ast.Constant) else None
        annotation = ast.parse(text, mode="eval") if isinstance(text, str) and text.isidentifier() else node.returns
        yield from (_last_name(n) for n in ast.walk(annotation) if isinstance(n, ast.Name | ast.Attribute))
    made = {
        target.id: _last_name(n.value)
        for n in _own(node)
        if isinstance(n, ast.Assign) and isinstance(n.value, ast.Call)
        for target in n.targets
        if isinstance(target, ast.Name)
    }
    for value in (n.value for n in _own(node) if isinstance(n, ast.Return)):
        if isinstance(value, ast.Call):
            yield _last_name(value)
        elif isinstance(value, ast.Name):
            yield made.get(value.id, "")


def _own(node: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield the nodes of a function without those of functions inside of it."""
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        inner = waiting.pop()
        yield inner
        if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(inner))


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _runs_at(tree: ast.Module) -> int | None:
    """Return the line that trains when the file is imported: a `while`, a backward, parsed arguments, a `main()`."""
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or _is_main_guard(node):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _last_name(node.value) in defined:
            return node.lineno
        for inner in ast.walk(node):
            calls = _last_name(inner) if isinstance(inner, ast.Call) else ""
            if isinstance(inner, ast.While) or calls in ("backward", "parse_args"):
                return node.lineno
    return None


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.dump(node.test)

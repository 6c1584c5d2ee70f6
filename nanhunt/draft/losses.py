"""Where the user's source computes a loss, told by what the code does: parsed with `ast`, never imported or run.

What counts. A call of a loss of torch (`F.cross_entropy`, `nn.MSELoss()(…)`, a name that holds such a module), `.loss` of what
a model returns, arithmetic on these, and, less surely, a mean or a sum that is returned. A function that returns one is of
one of two kinds. One that calls its first parameter is a function (model, batch), as nanhunt wants it; one that does not is
a criterion, a function of what the model returned. A class whose forward returns a loss is a model that is asked for its
loss, or a criterion where it has no layers that it calls. What a loop computes and calls backward on is told with its line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanhunt.draft.source import target_of

__all__ = ["LossPlace", "losses_in"]

_FUNCTIONS = re.compile(r"(?:.*_)?loss|(?:binary_)?cross_entropy(?:_with_logits)?|kl_div|.*cross_entropy|nll|mse|bce")
_MODULES = re.compile(r".*Loss|.*Criterion")
#: First parameters that are models by their name, where only a method of theirs is called.
_MODELS = frozenset({"model", "net", "network", "module", "policy", "agent", "encoder", "lm"})
_SCALAR = frozenset({"mean", "sum"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPlace:
    """A function (`step`, `criterion`), a class (`forward`, `criterion`) or a line of a loop (`loop`) that computes a loss."""

    kind: Literal["step", "criterion", "forward", "loop"]
    file: Path
    line: int
    #: as an import string; '' of a line in a loop
    spec: str = ""
    #: the line's own text, of a loop
    text: str = ""


def losses_in(file: Path, root: Path) -> list[LossPlace]:
    """Return where a file computes losses, by import strings that are looked up from `root`; [] of what is no Python."""
    try:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return []
    target = target_of(file, root)
    if target is None:
        return []
    modules = _loss_modules(tree)
    found = list(_of_definitions(tree, modules, file, target))
    lines = text.splitlines()
    # a loop in a function that returns its loss is told by its function
    told = {place.line for place in found if place.kind == "step"}
    for scope in [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.lineno not in told)]:
        line = _line_of_loop(scope, modules)
        if line is not None:
            found.append(LossPlace(kind="loop", file=file, line=line, text=lines[line - 1].strip()[:100]))
    return found


def _of_definitions(tree: ast.Module, modules: set[str], file: Path, target: str) -> Iterator[LossPlace]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and _returns_loss(node, modules):
            kind: Literal["step", "criterion"] = "step" if _calls_first(node) else "criterion"
            yield LossPlace(kind=kind, file=file, line=node.lineno, spec=f"{target}:{node.name}")
        if isinstance(node, ast.ClassDef):
            forward = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "forward"), None)
            is_loss = _MODULES.fullmatch(node.name) is not None
            if forward is not None and _returns_loss(forward, modules, surely=not is_loss):
                is_model = not is_loss and _calls_own(forward, modules)
                yield LossPlace(kind="forward" if is_model else "criterion", file=file, line=node.lineno,
                                spec=f"{target}:{node.name}")  # fmt: skip


def _loss_modules(tree: ast.Module) -> set[str]:
    """Return the names, of variables and attributes, that hold a loss of torch's classes: `criterion = nn.MSELoss()`."""
    return {
        _name(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _MODULES.fullmatch(_name(node.value.func))
        for target in node.targets
    } - {""}  # fmt: skip


def _returns_loss(function: ast.FunctionDef, modules: set[str], *, surely: bool = False) -> bool:
    """Whether a function returns a loss, alone or among others; `surely`: a mean or a sum by itself is none."""
    known = _loss_names(function, modules)
    returned = [n.value for n in _own(function) if isinstance(n, ast.Return) and n.value is not None]
    parts = [p for value in returned for p in (value.elts if isinstance(value, ast.Tuple) else [value])]
    return any(_is_loss(p, known, modules) or (not surely and _is_reduced(p)) for p in parts)


def _loss_names(scope: ast.AST, modules: set[str]) -> set[str]:
    """Return the variables of a scope that hold a loss, followed through its assignments in the order of the lines."""
    known: set[str] = set()
    assigned = [n for n in _own(scope) if isinstance(n, ast.Assign | ast.AugAssign | ast.AnnAssign)]
    for node in sorted(assigned, key=lambda n: n.lineno):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {_name(t) for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])}
        if node.value is None:
            continue
        if _is_loss(node.value, known, modules):
            known |= names if len(names) == 1 else {name for name in names if "loss" in name.lower()}
        elif isinstance(node.value, ast.Call):  # of the user's own function, or of a model that returns its loss too
            known |= {name for name in names if name.lower().rpartition("_")[2] == "loss"}
    return known - {""}


def _is_loss(node: ast.AST, known: set[str], modules: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in known
    if isinstance(node, ast.Attribute):
        return node.attr == "loss"
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "loss"
    if isinstance(node, ast.BinOp):
        return _is_loss(node.left, known, modules) or _is_loss(node.right, known, modules)
    if isinstance(node, ast.UnaryOp):
        return _is_loss(node.operand, known, modules)
    if isinstance(node, ast.IfExp):
        return _is_loss(node.body, known, modules) or _is_loss(node.orelse, known, modules)
    if not isinstance(node, ast.Call):
        return False
    made = isinstance(node.func, ast.Call) and _MODULES.fullmatch(_name(node.func.func))
    called = _name(node.func)
    if made or called in modules or _FUNCTIONS.fullmatch(called):
        return True
    receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
    return receiver is not None and _is_loss(receiver, known, modules)


def _is_reduced(node: ast.AST) -> bool:
    """Whether an expression is a mean or a sum over all, or arithmetic on one."""
    if isinstance(node, ast.BinOp):
        return _is_reduced(node.left) or _is_reduced(node.right)
    if isinstance(node, ast.UnaryOp):
        return _is_reduced(node.operand)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.keywords:
        return False
    return node.func.attr in _SCALAR and (not node.args or _name(node.func.value) == "torch")


def _calls_first(function: ast.FunctionDef) -> bool:
    """Whether a function calls its first parameter, as a model is called; a method of it where it is named as one."""
    first = next(iter([*function.args.posonlyargs, *function.args.args]), None)
    if first is None:
        return False
    for call in (n for n in ast.walk(function) if isinstance(n, ast.Call)):
        root = call.func
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id == first.arg and (root is call.func or first.arg in _MODELS):
            return True
    return False


def _calls_own(forward: ast.FunctionDef, modules: set[str]) -> bool:
    """Whether a forward calls an attribute of its module that is no loss."""
    calls = (n.func for n in ast.walk(forward) if isinstance(n, ast.Call))
    own = (f.attr for f in calls if isinstance(f, ast.Attribute) and _name(f.value) == "self")
    return any(name not in modules for name in own)


def _line_of_loop(scope: ast.AST, modules: set[str]) -> int | None:
    """Return the line that computes the loss that a scope calls backward on; None where it computes none itself."""
    nodes = list(_own(scope))
    if not any(isinstance(n, ast.Call) and _name(n.func) == "backward" for n in nodes):
        return None
    assigned = (n for n in nodes if isinstance(n, ast.Assign | ast.AugAssign))
    lines = [n.lineno for n in assigned if _is_loss(n.value, set(), modules)]
    return min(lines, default=None)


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a scope without those of functions and classes inside of it."""
    waiting: list[ast.AST] = list(_body(scope))
    while waiting:
        inner = waiting.pop()
        yield inner
        if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(inner))


def _body(scope: ast.AST) -> Iterable[ast.AST]:
    body = scope.body if isinstance(scope, ast.Module | ast.FunctionDef) else []
    return (n for n in body if not isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""

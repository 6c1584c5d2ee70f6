"""What a source line divides by, or takes a function of, as it is written there: so that a fix can name it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache

__all__ = ["argument_in", "divisor_in", "operand_in"]

_SIGNS: dict[str, type[ast.operator]] = {
    "add": ast.Add, "sub": ast.Sub, "mul": ast.Mult, "div": ast.Div, "pow": ast.Pow, "matmul": ast.MatMult,
}  # fmt: skip
#: Characters of an expression that a sentence can still quote.
_LONGEST = 40


def divisor_in(code: str) -> str:
    """Return what the line divides by, ready to be called upon; '' where it is no Python, or has no one divisor."""
    found = [node.right for node in _nodes(code) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)]
    found += [call.args[-1] for call in _calls(code, "div") if call.args]
    return _quoted(found)


def argument_in(code: str, function: str) -> str:
    """Return what the line takes a function of, `f(x)` or `x.f()`, ready to be called upon; '' where that is not clear."""
    found = []
    for call in _calls(code, function):
        if call.args:
            found.append(call.args[0])
        elif isinstance(call.func, ast.Attribute):
            found.append(call.func.value)
    return _quoted(found)


def operand_in(code: str, function: str, index: int) -> str:
    """Return the operand of a function of torch's, or of its sign, that stands at `index`; '' where that is not clear.

    What has a number for an operand is left aside: a tensor that is asked for is no operand of that.
    """
    given = [_given(call) for call in _calls(code, function)]
    sign = _SIGNS.get(function.strip("_"))
    given += [[n.left, n.right] for n in _nodes(code) if sign and isinstance(n, ast.BinOp) and isinstance(n.op, sign)]
    found = {
        ast.unparse(operands[index]): operands[index]
        for operands in given
        if index < len(operands) and not any(isinstance(o, ast.Constant) for o in operands)
    }
    return _quoted(list(found.values()))


def _given(call: ast.Call) -> list[ast.expr]:
    """Return the arguments of `torch.f(x, y)` and `F.f(x, y)`, and of `x.f(y)` what it is called upon as well."""
    of = call.func.value if isinstance(call.func, ast.Attribute) else None
    is_method = of is not None and ast.unparse(of) not in ("torch", "F", "torch.nn.functional")
    return [of, *call.args] if of is not None and is_method else [*call.args]


def _quoted(found: list[ast.expr]) -> str:
    if len(found) != 1:
        return ""
    text = ast.unparse(found[0])
    is_whole = isinstance(found[0], (ast.Name, ast.Attribute, ast.Call, ast.Subscript))
    text = text if is_whole else f"({text})"
    return text if len(text) <= _LONGEST and not isinstance(found[0], ast.Constant) else ""


def _calls(code: str, function: str) -> Iterator[ast.Call]:
    for node in _nodes(code):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name.rstrip("_") == function:
                yield node


@lru_cache(maxsize=64)
def _nodes(code: str) -> tuple[ast.AST, ...]:
    """Return the line's nodes; a line of a longer statement has none. A trace may hold anything for a line."""
    text = code.strip()
    text = text + " pass" if text.endswith(":") else text
    try:
        return tuple(ast.walk(ast.parse(text))) if len(text) < 1000 else ()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()

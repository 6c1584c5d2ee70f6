"""The text of the script that `nanhunt report --repro` writes: torch alone, one call, one verdict.

`@NAME@` stands for what `repro.py` fills in. `JUDGES` has the end of `main` by what is to be checked.
"""

from __future__ import annotations

__all__ = ["BESIDE", "ELEMENTS", "FORWARD", "JUDGES", "LOSSES", "ONCE", "SCRIPT", "SEEDED"]

SCRIPT = '''\
"""@TITLE@

@PLACE@

It needs torch, and @DATA@ beside it with the operands; nothing else. It exits with 0 where the fault shows again, with 1
where it does not, with 2 where the operands are missing.@REMARKS@
"""

import sys
from pathlib import Path

import torch

OP = torch.ops.@CALL@@CONSTANTS@
# what the replay ran with
@FLAGS@


def main() -> int:
    path = Path(__file__).with_suffix(".pt")
    if not path.exists():
        print(f"{path} is missing: it holds the operands")
        return 2
    call = torch.load(path, map_location=home, weights_only=True)
    given = named(OP, call["args"], call["kwargs"])
    print(f"torch {torch.__version__}; the replay ran torch @TORCH@ on @DEVICE@")
    print(OP)
    for name, value in given.items():
        print(f"  {name:<16} {described(value)}")
@JUDGE@

def named(op, args, kwargs):
    """The arguments by name; of a list of tensors each by its own, `name.0`, `name.1` ..."""
    pairs = [*zip((a.name for a in op._schema.arguments), args), *kwargs.items()]
    return {name: value for pair in pairs for name, value in parts(*pair)}


def parts(name, value):
    if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
        return [part for i, v in enumerate(value) for part in parts(f"{name}.{i}", v)]
    return [(name, value)]


def run(op, call, is_wide=False):
    """The op's outputs, and its arguments as they are after it, each by name; in fp64 where `is_wide`."""
    args, kwargs = arguments(op, call, wide if is_wide else torch.clone, is_wide)
    result = op(*args, **kwargs)
    return named(op, args, kwargs) | dict(parts("output", result))


def arguments(op, call, change, is_wide):
    """The call's arguments as torch takes them; every tensor goes through `change`."""
    # a softmax's `half_to_float` is for half inputs only
    narrow = [a.name == "half_to_float" and is_wide for a in op._schema.arguments]
    args = [False if n else plain(v, change, is_wide) for n, v in zip(narrow, call["args"])]
    return args, {name: plain(value, change, is_wide) for name, value in call["kwargs"].items()}


def plain(value, change, is_wide):
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list):
        return [plain(v, change, is_wide) for v in value]
    if isinstance(value, dict) and "torch" in value:
        found = getattr(torch, value["torch"])
        return torch.float64 if is_wide and isinstance(found, torch.dtype) and found.is_floating_point else found
    return home_device(value["device"]) if isinstance(value, dict) else value


def wide(tensor):
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def numbers(tensor):
    """The tensor in a format that torch can compare and print: 8-bit ones it cannot."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def described(value):
    if not isinstance(value, torch.Tensor):
        # ascii: what a file says must not drive the terminal
        return ascii(value["torch"] if isinstance(value, dict) and "torch" in value else value).strip("'")
    head = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if value.is_complex() or not value.numel():
        return head
    x = numbers(value)
    ok = torch.isfinite(x)
    said = f", {x[ok].min().item():.6g} to {x[ok].max().item():.6g}" if ok.any() else ""
    return head + said + (f", {int((~ok).sum())} not finite" if not ok.all() else "")


def home(storage, location):
    return storage.cuda() if location.startswith("cuda") and torch.cuda.is_available() else storage


def home_device(name):
    return torch.device("cuda" if name.startswith("cuda") and torch.cuda.is_available() else "cpu")

@HELPERS@
if __name__ == "__main__":
    sys.exit(main())
'''

#: Functions that some of the scripts need.
BESIDE = '''
def in_fp64(op, call):
    """The same output in fp64; None where torch has no such kernel."""
    try:
        return run(op, call, is_wide=True)[OUTPUT]
    except (RuntimeError, NotImplementedError) as error:
        print(f"  no fp64 beside it: {str(error).splitlines()[0]}")
        return None

'''
ELEMENTS = '''
def print_elements(bad, made, twin, given):
    """The first elements that are bad, with the operands that stand behind each where the op works by place."""
    for at in bad.nonzero()[:5].tolist():
        at = tuple(at)
        fp64 = f", in fp64 {twin[at].item():.6g}" if twin is not None and not twin.is_complex() else ""
        behind = [
            f"{name} {numbers(value).expand(made.shape)[at].item():.6g}"
            for name, value in given.items()
            if torch.Tag.pointwise in OP.tags and isinstance(value, torch.Tensor) and broadcasts(value, made)
        ]
        print(f"    {list(at)}: {', '.join(behind)}{' -> ' if behind else ''}{numbers(made)[at].item():.6g}{fp64}")


def broadcasts(tensor, made):
    try:
        return torch.broadcast_shapes(tensor.shape, made.shape) == made.shape
    except RuntimeError:
        return False

'''

_NON_FINITE = """\
@RUN@    title = f"{OUTPUT} after" if OP._schema.is_mutable and OUTPUT in given else OUTPUT
    print(f"  {title:<16} {described(made)}")
    if twin is not None:
        print(f"  {'in fp64':<16} {described(twin)}")
    print_elements(bad, made, twin, given)
@FORWARD@    if bad.any():
        print(f"The fault shows again: {int(bad.sum())} of {made.numel()} elements of {OUTPUT} are @SAID@.")
        return 0
    print(f"The fault does not show: no element of {OUTPUT} is @SAID@.")
    return 1
"""

#: How the op is run once, and where it draws random numbers.
ONCE = """\
    with torch.no_grad():
        made, twin = run(OP, call)[OUTPUT], in_fp64(OP, call)
    bad = @BAD@
"""
SEEDED = """\
    twin = None  # another run in fp64 would draw other numbers
    for seed in range(@SEEDS@):
        torch.manual_seed(seed)
        with torch.no_grad():
            made = run(OP, call)[OUTPUT]
        bad = @BAD@
        if bad.any():
            break
"""

_EXCEPTION = """\
    try:
        run(OP, call)
    except Exception as error:
        print(f"  {type(error).__name__}: {error}")
        if type(error).__name__ == ERROR:
            print(f"The fault shows again: the op raises {type(error).__name__}.")
            return 0
        print(f"The fault does not show: the op raises something else than {ERROR}.")
        return 1
    print("The fault does not show: the op raises nothing.")
    return 1
"""

_LOST = """\
    with torch.no_grad():
        made, twin = run(OP, call)[OUTPUT], in_fp64(OP, call)
    title = f"{OUTPUT} after" if OP._schema.is_mutable and OUTPUT in given else OUTPUT
    print(f"  {title:<16} {described(made)}")
    if twin is not None:
        print(f"  {'in fp64':<16} {described(twin)}")
    lost = lost_of(given.get("src", given.get("self")), numbers(made), twin)
    if lost:
        print(f"The fault shows again: {lost} @SAID@.")
        return 0
    print("The fault does not show: no @SAID@.")
    return 1
"""

#: By the name of a check: the end of `main`. What no name stands for is a loss, see `LOSSES`.
JUDGES = {"non-finite": _NON_FINITE, "nan": _NON_FINITE, "exception": _EXCEPTION, "": _LOST}

#: By the name of a check: what is lost as a clause, and the body of `lost_of`. Counts are of elements.
LOSSES = {
    "pinned": (
        "values beyond @END@ were cut off",
        "return int((torch.isfinite(made) & (numbers(operand).abs().double() > @END@)).sum())",
    ),
    "flushed": (
        "values became zero that fp64 keeps",
        "return 0 if twin is None else int(((made == 0) & (twin != 0)).sum())",
    ),
    "erased": (
        "values are exactly zero that are of the size of their neighbours in fp64",
        "return 0 if twin is None else int(((made == 0) & (twin.abs() >= 1e-3 * twin.abs().max()) & (twin != 0)).sum())",
    ),
    "collided": (
        "distinct whole numbers became another's",
        "return operand.unique().numel() - made.unique().numel()",
    ),
    "rounded": (
        "sums are a tenth off or more",
        "return 0 if twin is None else int(((made.double() - twin).abs() > 0.1 * twin.abs()).sum())",
    ),
    "absorbed": (
        "sums did not change by a bit, though something was added",
        "return 0 if twin is None else int(((made == operand) & (twin != operand.double())).sum())",
    ),
    "unmoved": (
        "elements did not change by a bit, though fp64 moves them",
        "return 0 if twin is None else int(((made == operand) & (twin != operand.double())).sum())",
    ),
}

#: A backward op is a step of its forward op's gradient, which is shown beside it.
FORWARD = '''
def print_gradient(call):
    """The gradient of the forward op, as autograd takes it from the recorded operands, and in fp64."""
    op = torch.ops.@FORWARD_CALL@
    print(f"it belongs to the gradient of {op}")
    for name, value in named(op, call["args"], call["kwargs"]).items():
        print(f"  {name:<16} {described(value)}")
    for title, is_wide in (("gradient", False), ("in fp64", True)):
        leaves = []

        def leaf(tensor):
            tensor = wide(tensor) if is_wide else tensor.clone()
            if not tensor.is_floating_point():
                return tensor
            leaves.append(tensor.requires_grad_())
            return leaves[-1].clone()

        try:
            args, kwargs = arguments(op, call, leaf, is_wide)
            made = [t for _, t in parts("output", op(*args, **kwargs)) if getattr(t, "grad_fn", None) is not None]
            pairs = [(o, g.to(o.dtype)) for o, g in zip(made, call["incoming"]) if g is not None]
            found = torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
        except RuntimeError as error:
            print(f"  {title:<16} {str(error).splitlines()[0]}")
            continue
        for grad in found:
            if grad is not None:
                print(f"  {title:<16} {described(grad)}")

'''

"""Names of tensors without what wrappers add to them.

torch.compile, FSDP 1 and activation checkpointing each put a segment of their own into the names of what they wrap, at
any level and in any order; no module is called that otherwise, so these are always dropped. DistributedDataParallel
puts `module`, a LightningModule the name of its attribute: those are ordinary names too, and are dropped or added only
where more names match for it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

__all__ = ["best_renaming", "clean_name"]

#: path segments that wrappers put into names: torch.compile, activation checkpointing, FSDP 1
WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
#: first segments that wrappers add: DataParallel and DDP; a LightningModule's attribute; DeepSpeed's forward module
PREFIXES = ("module.", "model.", "net.", "_forward_module.")


@functools.cache
def clean_name(name: str) -> str:
    """Return a parameter's name without the segments that wrappers put into it."""
    return ".".join(segment for segment in name.split(".") if segment not in WRAPPERS)


def best_renaming(ours: Mapping[str, str], theirs: dict[str, str]) -> tuple[dict[str, str], str]:
    """Return the checkpoint's names after the renaming that matches most of ours, and its description.

    Both map a clean name to the one that it was made of. A renaming is of all names or none, and makes no two one.
    """
    renamings = [("", theirs), *_renamings(ours, theirs)]
    best, told, most = theirs, "", sum(name in ours for name in theirs)
    bare = _bare_names(ours)
    # what is inside of names is looked at last: it is the bolder guess
    for description, renamed in (*renamings, *_without_module(renamings, bare)):
        count = sum(name in ours for name in renamed)
        if count > most:
            best, told, most = renamed, description, count
    return best, told


def _renamings(ours: Mapping[str, str], theirs: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    for dropped, names in [("", theirs), *_droppings(theirs, "", depth=3)]:
        told = f"the leading {dropped!r} was dropped" if dropped else ""
        if dropped:
            yield told, names
        for prefix in PREFIXES:
            added = {_with_prefix(prefix, name, ours): key for name, key in names.items()}
            if len(added) == len(names):
                yield (f"{told} and " if told else "the leading ") + f"{prefix!r} was added", added


def _with_prefix(prefix: str, name: str, ours: Mapping[str, str]) -> str:
    return prefix + name if name not in ours and prefix + name in ours else name


def _droppings(theirs: dict[str, str], dropped: str, depth: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what was dropped and the names without it: one prefix, then a second one from the result: `module.model.` is common."""
    for prefix in PREFIXES:
        if depth and any(name.startswith(prefix) for name in theirs):
            renamed = {name.removeprefix(prefix): key for name, key in theirs.items()}
            if len(renamed) == len(theirs):
                yield dropped + prefix, renamed
                yield from _droppings(renamed, dropped + prefix, depth - 1)


def _without_module(
    renamings: list[tuple[str, dict[str, str]]], bare: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the names after our own that are alike but for `module`: DDP around a part of the model, on either side."""
    for told, theirs in renamings:
        stripped = _bare_names(theirs)
        renamed = {bare.get(short, name): theirs[name] for short, name in stripped.items()}
        if bare and len(renamed) == len(theirs):
            yield f"{told}{' and ' if told else ''}'module.' inside of names was passed over", renamed


def _bare_names(names: Mapping[str, str]) -> dict[str, str]:
    """Return the names by what is left without `module`; {} where two would then be one."""
    bare = {".".join(s for s in name.split(".") if s != "module"): name for name in names}
    return bare if len(bare) == len(names) else {}

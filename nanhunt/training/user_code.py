"""The user's code: found by its import string, called with care, its errors told apart from ours."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from nanhunt.errors import ConfigError, UserCodeError

__all__ = ["call_user", "fill_parameters", "is_installed_module", "resolve", "resolve_callable", "user_traceback"]

_PACKAGE = Path(__file__).parents[1]

#: folders below a project that hold no modules of the user's
_NOT_THEIRS = {"__pycache__", "node_modules", "site-packages", "venv", "build", "dist"}

#: folders that installers fill, wherever they lie
_SITES = {"site-packages", "dist-packages"}

#: packages whose frames say nothing about the user's fault
_HIDDEN_PACKAGES = ("torch", "typer", "click", "contextlib.py", "importlib", "runpy.py")


class call_user:  # noqa: N801 - reads as a function: `with call_user("model"): …`
    """Run the body, which calls the user's code for a config key; what it raises becomes a UserCodeError.

    SystemExit counts as a failure: a script that parses arguments when it is imported exits. KeyboardInterrupt and
    nanhunt's own exceptions pass through.
    """

    def __init__(self, key: str) -> None:
        self.key = key

    def __enter__(self) -> None:
        """Do nothing; the work is on the way out."""

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        """Raise UserCodeError from the user's exception."""
        if exc is None or not isinstance(exc, Exception | SystemExit):
            return
        if type(exc).__module__.partition(".")[0] == "nanhunt":
            return
        hint = None
        if isinstance(exc, SystemExit):
            hint = "put what the script does when it is run under `if __name__ == '__main__':`"
        raise UserCodeError(f"{self.key}: {_last_line(exc)}", key=self.key, hint=hint) from exc


def resolve(spec: str, *, key: str, root: Path) -> Any:
    """Return the object that an import string names: `package.module:attr.sub` or `path/to/file.py:attr`.

    `root`, the config's folder, is put first on `sys.path`. Raises ConfigError where the module or the attribute is
    not there, UserCodeError where the import itself raises.
    """
    target, colon, attribute = spec.rpartition(":")
    if not (colon and target and attribute):
        raise ConfigError(f"{key}: expected 'package.module:attribute' or 'file.py:attribute', got {spec!r}")
    _enter(root.resolve())
    module = _module_of_file(target, key, root) if target.endswith(".py") else _module_by_name(target, key, root)
    found: Any = module
    for name in attribute.split("."):
        try:
            with call_user(key):
                found = _attribute(found, name)
        except _NoAttributeError:
            raise _attribute_missing(found, name, spec=spec, key=key, module=module) from None
    return found


def resolve_callable(spec: str, *, key: str, root: Path) -> Any:
    """Return what an import string names, as `resolve` does. Raises ConfigError where it cannot be called."""
    target = resolve(spec, key=key, root=root)
    if not callable(target):
        raise ConfigError(f"{key}: {spec} is a {type(target).__name__}, not a callable")
    return target


def fill_parameters(fn: Callable[..., Any], available: dict[str, object]) -> dict[str, object]:
    """Return those of `available` that `fn` has a parameter for, by name.

    A `**kwargs` asks for nothing. Empty where the signature cannot be told, as of some builtins.
    """
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return {}
    by_name = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in available.items() if name in by_name}


def user_traceback(exc: BaseException, *, root: Path) -> str:
    """Return the exception's traceback with the user's frames only, and always its last line.

    Frames of nanhunt, torch, typer and the import machinery are left out; frames below `root` stay.
    """
    told = traceback.TracebackException.from_exception(exc, compact=True)
    _keep_user_frames(told, root.resolve())
    return "".join(told.format()).rstrip("\n")


class _NoAttributeError(Exception):
    """An attribute that is not there, told apart from an AttributeError that the user's code raises."""


# the name is what `call_user` tells our exceptions by
_NoAttributeError.__module__ = __name__


def _attribute(owner: object, name: str) -> object:
    missing = object()
    found = getattr(owner, name, missing)
    if found is missing:
        raise _NoAttributeError
    return found


def _attribute_missing(owner: object, name: str, *, spec: str, key: str, module: ModuleType) -> ConfigError:
    names = [n for n in dir(owner) if not n.startswith("_")]
    where = getattr(module, "__file__", None) or f"module {module.__name__}"
    inside = where if owner is module else f"{where}: {getattr(owner, '__name__', type(owner).__name__)}"
    message = f"{key}: {spec}: the module is found, but {inside} has no {name!r}{_did_you_mean(name, names)}"
    own = [n for n in names if getattr(getattr(owner, n, None), "__module__", None) == module.__name__]
    return ConfigError(message, hint=f"it defines {', '.join(own[:8])}" if own else None)


def _enter(root: Path) -> None:
    """Put `root` first on `sys.path`, and forget modules of its names that came from another project.

    Several projects in one process (tests, a notebook) have a `train.py` and a `model.py` each.
    """
    if sys.path[:1] != [str(root)]:
        sys.path[:] = [str(root), *(p for p in sys.path if p != str(root))]
    importlib.invalidate_caches()
    for name in _modules_in(root):
        loaded = sys.modules.get(name)
        if loaded is not None and _is_of_another_project(loaded, root):
            _forget(name)


def _forget(name: str) -> None:
    for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[loaded]


def _is_of_another_project(module: ModuleType, root: Path) -> bool:
    """Whether a module lies neither in `root` nor among what is installed.

    An installed module stays, even where the project has a file of its name: half of the process already uses it.
    """
    if module.__name__ in ("nanhunt", "__main__") or module.__name__ in sys.stdlib_module_names:
        return False
    file = _file_of(module)
    places = [file] if file else list(getattr(module, "__path__", []))
    return bool(places) and not any(_is_below(Path(p), root) or _is_installed(Path(p)) for p in places)


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder)


def _is_installed(path: Path) -> bool:
    # the interpreter's own folders, and those that it was led to: a user's site, a system's beneath an environment
    if not _SITES.isdisjoint(path.parts):
        return True
    paths = sysconfig.get_paths()
    return any(_is_below(path, Path(paths[k]).resolve()) for k in ("stdlib", "platstdlib", "purelib", "platlib"))


def is_installed_module(module: ModuleType) -> bool:
    """Whether a module is a library's rather than the user's own: installed, part of Python, or ours."""
    return _is_installed_name(module.__name__)


@lru_cache(maxsize=4096)
def _is_installed_name(name: str) -> bool:
    if name.partition(".")[0] in ("nanhunt", *sys.stdlib_module_names):
        return name != "__main__"
    file = _file_of(sys.modules[name]) if name in sys.modules else None
    return file is None or _is_installed(file)


def _module_by_name(name: str, key: str, root: Path) -> ModuleType:
    if name.startswith("."):
        raise ConfigError(
            f"{key}: {name!r} is relative; name the module from the config's folder: {name.lstrip('.')!r}"
        )
    try:
        with call_user(key):
            return importlib.import_module(name)
    except UserCodeError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and _is_or_holds(cause.name, name):
            message = f"{key}: no module {cause.name!r} in {root.resolve()} or among the installed packages"
            near = _did_you_mean(name, list(_modules_below(root.resolve())))
            raise ConfigError(f"{message}{near}", hint=_module_hint(name, root, key)) from cause
        raise


def _is_or_holds(missing: str | None, name: str) -> bool:
    """Whether the module that was not found is the one asked for, or a package on the way to it."""
    return missing is not None and (name == missing or name.startswith(f"{missing}."))


def _module_hint(name: str, root: Path, key: str) -> str:
    if "/" in name or "\\" in name:
        return f"a path ends in .py: '{name}.py:attribute'"
    if not list(_modules_in(root.resolve())):
        return "import strings are looked up from the folder of the config, where there is no Python file"
    return f"write it, or name under {key}: in the config what your own code calls it"


def _module_of_file(target: str, key: str, root: Path) -> ModuleType:
    """Import a file by its path, relative to `root`; its folder goes on `sys.path` too, as for a script."""
    file = (root / target).resolve()
    if not file.is_file():
        there = [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise ConfigError(f"{key}: no file {file}{_did_you_mean(file.name, there)}")
    name = file.stem
    if file.parent != root.resolve() or "." in name or name in sys.stdlib_module_names or _is_taken(name, file):
        # random.py:make_data must not take the place of a module that others use, nor sub/train.py that of train.py
        name = f"{file.stem}_in_{file.parent.name}".replace(".", "_")
    if str(file.parent) not in sys.path:
        sys.path.insert(1, str(file.parent))
    loaded = sys.modules.get(name)
    return loaded if loaded is not None and _file_of(loaded) == file else _executed(name, file, key)


def _is_taken(name: str, file: Path) -> bool:
    return name in sys.modules and _file_of(sys.modules[name]) != file


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def _executed(name: str, file: Path, key: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{key}: {file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with call_user(key):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _modules_in(folder: Path) -> Iterator[str]:
    """Yield the names that an import from this folder finds: files and packages."""
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        if entry.suffix == ".py":
            yield entry.stem
        elif entry.is_dir() and entry.name.isidentifier() and entry.name not in _NOT_THEIRS and any(entry.glob("*.py")):
            yield entry.name


def _modules_below(root: Path, depth: int = 3) -> Iterator[str]:
    for name in _modules_in(root):
        yield name
        if depth > 1 and (root / name).is_dir():
            yield from (f"{name}.{inner}" for inner in _modules_below(root / name, depth - 1) if inner != "__init__")


def _did_you_mean(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _last_line(exc: BaseException) -> str:
    return "".join(traceback.format_exception_only(exc)).strip().splitlines()[-1]


def _keep_user_frames(told: traceback.TracebackException, root: Path) -> None:
    kept = [frame for frame in told.stack if _is_users_frame(frame.filename, root)]
    # without frames there is nothing under "Traceback (most recent call last):"
    told.stack = traceback.StackSummary.from_list(kept) if kept else None  # type: ignore[assignment]
    for other in (told.__cause__, told.__context__, *(told.exceptions or [])):
        if other is not None:
            _keep_user_frames(other, root)


def _is_users_frame(filename: str, root: Path) -> bool:
    if filename.startswith("<frozen "):
        return False
    path = Path(filename)
    if _is_below(path, _PACKAGE):
        return False
    if _is_below(path, root) and not _is_installed(path):
        return True
    return not (_is_installed(path) and any(part in _HIDDEN_PACKAGES for part in path.parts))

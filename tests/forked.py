"""Commands in a process of their own that has torch loaded already.

Each starts as a fork of one that has imported what nearly all of them import: 4 to 8 s of two cores' time are saved for each of
some two hundred. What a user's shell does besides (the interpreter's start, the entry point) is seen by tests that
start Python anew: `tests/cli/test_startup.py` and all that use `subprocess` themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

__all__ = ["python"]

_LOADED = "tests.forked_preload"


def python(*words: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 600) -> CompletedProcess[str]:
    """Run what `python *words` runs (`-m module …`, `script.py …`) in `cwd`, and return its exit code and output.

    `env` is added to this process's own. Raises TimeoutExpired behind `timeout` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_LOADED])
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        child = context.Process(target=_run, args=(words, str(cwd), {**os.environ, **(env or {})}, str(out), str(err)))
        child.start()
        child.join(timeout)
        if child.exitcode is None:
            child.kill()
            child.join()
            raise TimeoutExpired(list(words), timeout)
        return CompletedProcess([sys.executable, *words], child.exitcode, out.read_text(), err.read_text())


def _run(words: tuple[str, ...], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False) for descriptor in (1, 2))  # noqa: SIM115
    code = 0
    try:
        _main(words)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _main(words: tuple[str, ...]) -> None:
    if words[0] == "-m":
        sys.argv = ["", *words[2:]]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")

"""Python imports this file when it starts, because `nanhunt run` has put this folder on PYTHONPATH for one process.

It takes every sign of itself away again (PYTHONPATH, `sys.path`, the name `sitecustomize`), runs the installation's own
sitecustomize, and waits for the script to import torch. What fails here is told on stderr; the script runs.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys


def _leave_no_trace() -> str | None:
    """Put PYTHONPATH and sys.path back, and return the settings that came with them."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    before = os.environ.pop("NANHUNT_RUN_PYTHONPATH", None)
    if before is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = before
    return os.environ.pop("NANHUNT_RUN", None)


def _run_the_other() -> None:
    """Import the sitecustomize that stands behind this one, if there is one, under its name."""
    del sys.modules["sitecustomize"]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        sys.modules["sitecustomize"] = _SELF  # the import that runs this file looks for it
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


_SELF = sys.modules[__name__]
_settings = _leave_no_trace()
try:
    if _settings is not None:
        from nanhunt.recorder.script.awaited import await_torch

        await_torch(_settings)
except Exception as error:
    print(f"nanhunt: nothing is recorded: {type(error).__name__}: {error}", file=sys.stderr)
_run_the_other()

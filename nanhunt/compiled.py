"""Compiled models: hunted in eager mode, where every op can be seen, and held against one compiled pass.

Hooks that are added after a compiled function's first call are ignored without a word, and a dispatch mode makes
torch.compile fall back to eager anyway. So the whole hunt runs under the stance "force_eager", and says so. Then the
steps run once more as the user's run did, compiled: a fault that shows there and not in eager mode is the compiler's or
its kernels', and one that shows in eager mode only is not what the user saw.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch

from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import replay_step
from nanhunt.rewind import kept, rewind
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.verdicts import Known, StepFault, fault_of

__all__ = ["compiled_pass", "eager", "is_compiled"]


def is_compiled(run: TrainingRun) -> bool:
    """Whether a module or function of the run was given to torch.compile."""
    if "torch._dynamo" not in sys.modules:  # torch.compile imports it; to ask it would be to import it
        return False
    modules = [m for root in run.roots().values() for m in root.modules()]
    by_module = any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in modules)
    return by_module or run.owned.compiled


@contextlib.contextmanager
def eager(run: TrainingRun) -> Iterator[None]:
    """Run the body with everything that is compiled in eager mode."""
    if not is_compiled(run):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def compiled_pass(
    run: TrainingRun, ring: SnapshotRing, first: int, last: int, known: Known
) -> tuple[dict[str, Any], StepFault | None]:
    """Run the steps from `first` to `last` compiled and return the note's body, and the fault that shows. Puts the run back.

    A compilation that fails is told in the body, and is no fault of the step.
    """
    body: dict[str, Any] = {"first": first, "last": last, "step": None, "fault": "", "trouble": ""}
    quiet = RowBuffer()
    with kept(run, last + 1), torch.compiler.set_stance("default"):
        rewind(run, ring, first)
        for step in range(first, last + 1):
            try:
                seen = replay_step(run, step, quiet, recorded=False)
            except Exception as error:  # the compiler's own: whatever it raises, the eager hunt stands
                return body | {"trouble": _first_line(error)}, None
            finally:
                quiet.drop()
            if seen.error is not None and _is_of_the_compiler(seen.error):
                return body | {"trouble": _first_line(seen.error)}, None
            fault = fault_of(seen, known)
            if fault is not None:
                return body | {"step": step, "fault": fault.detail}, fault
    return body, None


def _is_of_the_compiler(error: BaseException) -> bool:
    """Whether the compilation failed, for want of a C++ compiler perhaps, and not the step."""
    return any(c.__module__.startswith(("torch._dynamo", "torch._inductor")) for c in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {''.join(str(error).strip().splitlines()[:1])[:160]}"

"""Find out why a training run produced a NaN, an Inf or a loss spike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanhunt.diagnosis.cause import Diagnosis as Diagnosis
    from nanhunt.formats.number_format import NumberFormat as NumberFormat
    from nanhunt.recorder.recorder import Recorder as Recorder
    from nanhunt.trace.reader import Trace as Trace

__version__ = "0.1.0"

__all__ = ["Diagnosis", "NumberFormat", "Recorder", "Trace", "__version__"]

_HOMES = {
    "Diagnosis": "nanhunt.diagnosis.cause",
    "NumberFormat": "nanhunt.formats.number_format",
    "Recorder": "nanhunt.recorder.recorder",
    "Trace": "nanhunt.trace.reader",
}


def __getattr__(name: str) -> Any:
    """Import a public noun on first use, so that `import nanhunt` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nanhunt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

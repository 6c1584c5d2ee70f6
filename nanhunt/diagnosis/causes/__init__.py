"""The catalogue: every cause, in the order in which they are asked. A file each, named by its slug."""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause

__all__ = ["CAUSES"]

CAUSES: tuple[Cause, ...] = ()

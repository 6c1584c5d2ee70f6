"""The rules of an inspection, in the order in which their findings are told. Each is silent where it has nothing to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nanhunt.inspection.facts import Facts
from nanhunt.inspection.finding import Finding
from nanhunt.inspection.rules import changes, flips, garbage, log, moments, pages, poison, scaler, settings

__all__ = ["RULES"]

RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    poison.examine,
    flips.examine,
    garbage.examine,
    pages.examine,
    moments.examine,
    settings.examine,
    scaler.examine,
    log.examine,
    changes.examine,
)

"""What `tests.forked` loads once: torch, dynamo (an optimizer asks for it), Numba's code, and what `nanhunt` imports."""

from __future__ import annotations

from tests.corpus.runner import load_shared

load_shared()

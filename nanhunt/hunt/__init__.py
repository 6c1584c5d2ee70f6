"""The plan of a hunt: replay until something breaks, zoom into it, try what would explain it, finish the trace."""

from nanhunt.hunt.plan import hunt
from nanhunt.hunt.state import HuntSettings, Progress

__all__ = ["HuntSettings", "Progress", "hunt"]

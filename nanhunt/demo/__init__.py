"""The embedded default: a small GPT on Python's own help text, with a fault planted in its training."""

from nanhunt.demo.faults import FAULTS, Fault, Size
from nanhunt.demo.project import Project, prepare

__all__ = ["FAULTS", "Fault", "Project", "Size", "prepare"]

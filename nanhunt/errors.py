"""The errors that nanhunt raises on purpose, each with its exit code and its way out.

Lower layers raise a situation where the file, key or module is known; `cli.main` catches once.
Anything else that escapes is a bug in nanhunt (exit code 70).
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "NanhuntError",
    "RoomError",
    "TraceError",
    "UsageError",
    "UserCodeError",
]


class NanhuntError(Exception):
    """A situation that the user can mend.

    `message` names the file, key or option; `hint` says what to do next. One line each.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(NanhuntError):
    """Options that do not go together, or an output that must not be overwritten."""


class ConfigError(NanhuntError):
    """`nanhunt.yaml`: a key, a type, or an import string that does not resolve."""


class CheckpointError(NanhuntError):
    """A checkpoint that is missing, broken, unsafe, or does not fit the model."""


class TraceError(NanhuntError):
    """A trace that is missing, not a trace, from a later version, or cannot be written."""


class RoomError(NanhuntError):
    """Neither host memory nor a disk has room for what must be kept."""


class UserCodeError(NanhuntError):
    """The user's own code failed before or outside a replayed step.

    `key` is the config key that led there; `__cause__` is their exception with its traceback.
    """

    exit_code = 3

    def __init__(self, message: str, *, key: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key = key

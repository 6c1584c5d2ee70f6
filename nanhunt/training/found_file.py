"""Whether a file that the config names is there: a name that no file system takes is bad input as well."""

from __future__ import annotations

from pathlib import Path

from nanhunt.errors import ConfigError

__all__ = ["is_there"]


def is_there(path: Path, key: str) -> bool:
    """Whether a file or folder is there; raises ConfigError, naming the key, where that cannot be asked (a name too long)."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        name = str(path) if len(str(path)) <= 80 else f"{str(path)[:60]}… ({len(str(path))} characters)"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{key}: {name}: {reason}", hint="name a file that can be opened") from error
    return True

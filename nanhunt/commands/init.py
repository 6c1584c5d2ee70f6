"""`nanhunt init`: write a nanhunt.yaml that fits a checkpoint, and say what it could not know."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from nanhunt.commands.terminal import color_wanted, terminal_width
from nanhunt.draft.ask import asked
from nanhunt.draft.guess import guesses_of
from nanhunt.draft.losses import losses_in
from nanhunt.draft.sections import draft_of
from nanhunt.draft.shown import Shown, shown_of
from nanhunt.draft.source import definitions_in, source_files
from nanhunt.draft.text import Draft, draft_text
from nanhunt.errors import UsageError
from nanhunt.report.page import Page
from nanhunt.report.words import printable, prose

__all__ = ["InitOptions", "init"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InitOptions:
    """The command line of `nanhunt init`."""

    checkpoint: Path | None = None
    out: Path = Path("nanhunt.yaml")
    force: bool = False
    trust_pickle: bool = False
    quiet: bool = False


def init(options: InitOptions, *, ask: Callable[[str], str] | None = None) -> None:
    """Write the config and print what is in it, what could not be known, and the command to type next.

    `ask` puts a question and returns the line; without it a terminal is asked, and nobody where there is none or under
    `--quiet`. The file is written last: an interrupt leaves nothing. Raises CheckpointError as loading does, UsageError
    where the file exists or cannot be written.
    """
    out = options.out
    _refuse_to_overwrite(options)
    shown = shown_of(options.checkpoint, trust_pickle=options.trust_pickle)
    root = out.absolute().parent
    beside = [] if options.checkpoint is None else [options.checkpoint.absolute().parent]
    files = source_files([root, Path.cwd(), *beside])
    definitions = [d for file in files for d in definitions_in(file, root)]
    guesses = guesses_of(definitions, shown, [place for file in files for place in losses_in(file, root)])
    draft = draft_of(shown, guesses, root=root, command=_next(options))
    if ask is None and not options.quiet and sys.stdin.isatty() and sys.stdout.isatty():
        ask = input
    if ask is not None:
        draft = asked(draft, root=root, ask=ask, say=print)
    _write(out, draft_text(draft))
    print(_next(options) if options.quiet else _page(options, shown, draft), end="\n" if options.quiet else "")


def _refuse_to_overwrite(options: InitOptions) -> None:
    if options.out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out {options.out}: a config's name ends in .yaml")
    if options.out.exists() and not options.force:
        raise UsageError(
            f"--out {options.out}: exists already", hint="pass --force to overwrite it, or another name with --out"
        )


def _write(out: Path, text: str) -> None:
    """Write the file at once: a reader, or an interrupt, meets none or all of it."""
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _next(options: InitOptions) -> str:
    """Return the command that says whether the config holds."""
    checkpoint = "CKPT" if options.checkpoint is None else shlex.quote(str(options.checkpoint))
    places = [Path("nanhunt.yaml")]
    config = "" if options.out.absolute() in [p.absolute() for p in places] else f" -c {shlex.quote(str(options.out))}"
    trust = " --trust-pickle" if options.trust_pickle else ""
    return f"nanhunt replay {checkpoint}{config}{trust} --dry-run"


def _page(options: InitOptions, shown: Shown, draft: Draft) -> str:
    page = Page(max(terminal_width(), 40))
    page.put(Text("wrote ", "bold green"), Text(printable(str(options.out)), "bold"), indent=0)
    page.put(Text())
    for entry in (e for e in draft.entries if e.active):
        is_open = entry.key in draft.placeholders
        lines = [_in_short(entry.value), *(["still open"] if is_open else [])]
        page.put(Text(f"{entry.key:<12}", "dim"), Text(" · ".join(lines), "yellow" if is_open else ""))
    unknown = list(draft.unknown)
    if draft.guessed:
        unknown.insert(0, f"{', '.join(draft.guessed)}: guesses from the source, by name; nothing was imported")
    if unknown:
        page.heading("could not know")
        for text in unknown:
            page.put(Text("• "), Text(prose(text)))
    page.heading("next")
    if draft.placeholders:
        page.put(Text(f"name {' and '.join(draft.placeholders)} in {printable(str(options.out))}, then"))
    page.row(Text(_next(options), "cyan"))
    return page.text(color=color_wanted())


def _in_short(value: object) -> str:
    """Return an entry's value on one line, as the file has it in more."""
    if not isinstance(value, dict):
        return printable(str(value))
    if "call" in value:
        return printable(f"{value['call']}({', '.join(f'{k}={v}' for k, v in value.get('kwargs', {}).items())})")
    return printable(", ".join(f"{k} {'yes' if v is True else v}" for k, v in value.items()))

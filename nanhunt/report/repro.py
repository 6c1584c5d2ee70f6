"""The culprit op as a script: its real operands, its flags, its verdict, with torch and nothing else.

The replay kept the call beside the trace. Here its note becomes a script, and the file a copy beside the script; what a
trace says is never written into code but as a literal, for whoever made the trace is not whoever runs the script.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from nanhunt import __version__
from nanhunt.errors import UsageError
from nanhunt.report.repro_script import BESIDE, ELEMENTS, FORWARD, JUDGES, LOSSES, ONCE, SCRIPT, SEEDED
from nanhunt.report.words import printable, prose
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import BACKEND_FLAGS, NoteKind
from nanhunt.trace.writer import repro_path

__all__ = ["Repro", "find_repro", "script_of"]

_OVERLOAD = re.compile(r"aten\.[A-Za-z_]\w*\.[A-Za-z_]\w*")
#: of an output, `self.0`, or of an exception
_NAME = re.compile(r"[\w.]*")
#: what a note of a call that was kept always says
_NEEDED = frozenset({"call", "check", "output", "error", "step", "phase", "module", "torch", "device", "end"})
#: ops that touch files: a trace that names one was made by hand
_TOUCH_FILES = frozenset({"from_file", "save"})
_AGAIN = "`nanhunt replay CHECKPOINT --force` writes it anew"
#: Times that an op with random numbers is run, with another seed each.
_SEEDS = 10


class Repro:
    """A script and the operands that it reads, ready to be written to two places where nothing is yet."""

    def __init__(self, body: dict[str, Any], data: Path, script: Path, trace: Path) -> None:
        self.script = script
        self.operands = script.with_suffix(".pt")
        self._data = data
        self._text = script_of(body, data=self.operands.name, trace=trace.name)

    def write(self) -> None:
        """Write both. Raises UsageError where that cannot be done."""
        try:
            shutil.copyfile(self._data, self.operands)
            self.script.write_text(self._text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--repro {self.script}: cannot be written: {error.strerror or error}") from error


def find_repro(trace: Trace, script: Path) -> Repro:
    """Return what `script` would become. Raises UsageError where the trace keeps no call, or something is in the way."""
    if script.suffix != ".py":
        raise UsageError(f"--repro {script}: a script's name ends in .py")
    if not script.parent.is_dir():
        raise UsageError(f"--repro {script}: there is no folder {script.parent}", hint=f"mkdir -p {script.parent}")
    for path in (script, script.with_suffix(".pt")):
        if path.exists():
            raise UsageError(f"--repro {script}: {path} exists already", hint="remove it, or name another file")
    body = trace.note_of(NoteKind.REPRO)
    if body is None:
        is_old = trace.note_of(NoteKind.ONSET) is not None
        why = f"the trace is of an earlier nanhunt that kept no call; {_AGAIN}" if is_old else "no fault was found"
        raise UsageError(f"--repro {script}: {trace.path} has nothing to show: {why}")
    if body.get("reason"):
        raise UsageError(f"--repro {script}: there is no op to show: {prose(str(body['reason']))}")
    return Repro(body, _operands(trace, body, script), script, trace.path)


def _operands(trace: Trace, body: dict[str, Any], script: Path) -> Path:
    """Return the file that the note means: by its name, or beside a trace that was renamed with it."""
    named = trace.path.parent / Path(str(body.get("file"))).name
    found = [p for p in dict.fromkeys((named, repro_path(trace.path))) if p.is_file()]
    if not found:
        raise UsageError(f"--repro {script}: {named} is gone, which held the operands", hint=_AGAIN)
    for path in found:
        if hashlib.sha256(path.read_bytes()).hexdigest() == body.get("sha256"):
            return path
    raise UsageError(f"--repro {script}: {found[0]} is not the file that {trace.path} was written with", hint=_AGAIN)


def script_of(body: dict[str, Any], *, data: str, trace: str) -> str:
    """Return the script of a note. Raises UsageError where the note is none that this version knows."""
    unsaid = sorted(_NEEDED - set(body))
    if unsaid:
        raise UsageError(f"the trace's note of the call lacks {', '.join(unsaid)}", hint=_AGAIN)
    call, check, forward = str(body["call"]), str(body["check"]), str(body.get("forward") or "")
    names = [str(body["output"]), str(body["error"])]
    known = check in {*JUDGES, *LOSSES} - {""} and all(_NAME.fullmatch(name) for name in names)
    if not known or not all(
        _OVERLOAD.fullmatch(op) and op.split(".")[1] not in _TOUCH_FILES for op in (call, forward or call)
    ):
        raise UsageError(f"the trace's call of {printable(call)} is none that nanhunt {__version__} can write down")
    parts = {
        "TITLE": _docstring(f"{call} at step {body['step']}: {_wrong(body)}."),
        "PLACE": _docstring(_place(body, trace)),
        "DATA": _docstring(data),
        "REMARKS": _remarks(body),
        "CALL": call,
        "CONSTANTS": f'\nERROR = "{body["error"]}"' if check == "exception" else f'\nOUTPUT = "{body["output"]}"',
        "FLAGS": _flags(body),
        "TORCH": _inside(str(body["torch"])),
        "DEVICE": _inside(str(body["device"])),
        "JUDGE": JUDGES.get(check, JUDGES[""]),
        "HELPERS": _helpers(check, forward),
        "FORWARD": '    if "forward" in call:\n        print_gradient(call["forward"])\n' if forward else "",
        "FORWARD_CALL": forward,
        "RUN": SEEDED if body.get("draws") else ONCE,
        "SEEDS": str(_SEEDS),
        "BAD": "torch.isnan(numbers(made))" if check == "nan" else "~torch.isfinite(numbers(made))",
        "SAID": LOSSES[check][0] if check in LOSSES else "NaN" if check == "nan" else "non-finite",
        "END": repr(float(body["end"])),
    }
    return _filled(SCRIPT, parts)


def _filled(text: str, parts: dict[str, str]) -> str:
    """Put parts in their places; a part of the template may have places of its own, what the trace says has none."""
    for name in ("JUDGE", "RUN", "HELPERS", "FORWARD", "SAID"):
        text = text.replace(f"@{name}@", parts.get(name, ""))
    return re.sub(r"@([A-Z_]+)@", lambda m: parts.get(m[1], m[0]), text)


def _helpers(check: str, forward: str) -> str:
    if check == "exception":
        return ""
    if check in LOSSES:
        return BESIDE + f"\ndef lost_of(operand, made, twin):\n    {LOSSES[check][1]}\n\n"
    return BESIDE + ELEMENTS + (FORWARD if forward else "")


def _wrong(body: dict[str, Any]) -> str:
    check = str(body["check"])
    if check == "exception":
        return f"it raises {body['error']}"
    if check in LOSSES:
        return _filled(LOSSES[check][0], {"END": f"{body['end']:g}"})
    return f"it makes {'NaN' if check == 'nan' else 'non-finite values'} of these operands"


def _place(body: dict[str, Any], trace: str) -> str:
    where = f"Phase {body['phase']}, in {body['module']}" if body["module"] else f"Phase {body['phase']}"
    source = f", {body['source']}" if body.get("source") else ""
    return f"{where}{source}. Written by nanhunt {__version__} from {trace}."


def _remarks(body: dict[str, Any]) -> str:
    said = []
    if body.get("cut"):
        said.append(f"The operands were too large to be kept: here is {body['cut']}.")
    if body.get("draws"):
        said.append(f"The op draws random numbers: {_SEEDS} seeds are tried.")
    return "".join(f"\n\n{_docstring(text)}" for text in said)


def _flags(body: dict[str, Any]) -> str:
    lines = []
    for name, value in dict(body.get("flags") or {}).items():
        if name == "default_dtype" and value != "float32" and _NAME.fullmatch(str(value)):
            lines.append(f"torch.set_default_dtype(torch.{value})")
        elif name == "float32_matmul_precision" and value in ("highest", "high", "medium"):
            lines.append(f'torch.set_float32_matmul_precision("{value}")')
        elif name == "deterministic_algorithms" and value is True:
            lines.append("torch.use_deterministic_algorithms(True, warn_only=True)")
        elif name in BACKEND_FLAGS and isinstance(value, bool):
            lines.append(f"torch.backends.{name} = {value}")
    return "\n".join(lines)


def _docstring(text: str) -> str:
    """Return text of a trace as a docstring can hold it."""
    return prose(text).replace("\\", "/").replace('"', "'")


def _inside(text: str) -> str:
    """Return text of a trace as a literal of the template's can hold it."""
    return re.sub(r"[^\w.+:-]", "_", text)

"""One program of the corpus: a `train.py` that a user would have, and the truth about its fault.

A program is one file, `programs/<cause>/<name>.py`, or `programs/healthy/<name>.py`. Beside the usual functions
(`build_model`, `batches`, `compute_loss` or `train_step`, `make_optimizer`, perhaps `make_scheduler`) it states

- `FAULTY = True`: its twin has False there, and must train on;
- `TRUTH`: what an expert would write under the report (`Truth`); a healthy program has its family only;
- `CONFIG`: what nanhunt.yaml holds beyond the import strings, and `MENDED`: the top-level keys that differ in the twin's;
- `BEFORE`: steps that its healthy twin trains before the checkpoint; or `make_checkpoint(train)`, which returns the
  checkpoint itself, where `train` is the program as a module.

nanhunt reads neither of them: no rule may know a program.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

__all__ = ["HEALTHY", "PROGRAMS", "Program", "Truth", "programs"]

PROGRAMS = Path(__file__).parent / "programs"
HEALTHY = "healthy"
_STATED = ("TRUTH", "CONFIG", "MENDED", "BEFORE")
_FAULTY = "FAULTY = True"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is right. None and () leave a part open: it is not judged."""

    #: "rnn", "transformer", "gan" …: what is left out together when a threshold is tried
    family: str
    #: accepted as the first suspect; the first of them is the one that the program is counted under
    causes: tuple[str, ...] = ()
    #: true besides, though not what an expert would name first: the proximate fault, the input that exposed it
    also: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    #: a step, or the first and last of a range
    step: int | tuple[int, int] | None = None
    phase: tuple[str, ...] = ()
    #: globs
    module: tuple[str, ...] = ()
    parameter: tuple[str, ...] = ()
    #: prefixes: "aten.log"
    op: tuple[str, ...] = ()
    #: texts of source lines, any of which is the line
    line: tuple[str, ...] = ()
    #: None: not judged; (): no sample's fault
    samples: tuple[int, ...] | None = None

    @classmethod
    def of(cls, body: dict[str, Any]) -> Truth:
        """Build it from the program's literal; a single string stands for a tuple of one."""
        unknown = set(body) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"TRUTH: unknown {sorted(unknown)}")
        many = {"causes", "also", "kind", "phase", "module", "parameter", "op", "line"}
        made = {k: _tuple(v) if k in many else v for k, v in body.items()}
        if made.get("samples") is not None:
            made["samples"] = tuple(made["samples"])
        if isinstance(made.get("step"), list):
            made["step"] = tuple(made["step"])
        return cls(**made)


def _tuple(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program's file and what it states of itself."""

    path: Path
    source: str
    truth: Truth
    config: dict[str, Any] = field(default_factory=dict)
    mended: dict[str, Any] = field(default_factory=dict)
    before: int = 6

    @classmethod
    def read(cls, path: Path) -> Program:
        """Read a file's literals without running it. Raises ValueError where it states no truth."""
        source = path.read_text()
        stated: dict[str, Any] = {}
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in _STATED:
                stated[node.targets[0].id] = ast.literal_eval(node.value)
        if "TRUTH" not in stated:
            raise ValueError(f"{path.name}: no TRUTH")
        return cls(
            path=path,
            source=source,
            truth=Truth.of(stated["TRUTH"]),
            config=stated.get("CONFIG", {}),
            mended=stated.get("MENDED", {}),
            before=stated.get("BEFORE", 6),
        )

    @property
    def name(self) -> str:
        """`naive-exp-log/dpo_log_sigmoid`."""
        return f"{self.cause or HEALTHY}/{self.path.stem}"

    @property
    def cause(self) -> str | None:
        """The cause that it is counted under; None of a healthy one."""
        return self.truth.causes[0] if self.truth.causes else None

    @property
    def has_twin(self) -> bool:
        """Whether there is a mended twin: every faulty program has one."""
        return _FAULTY in self.source

    @cached_property
    def functions(self) -> frozenset[str]:
        """Names of its top-level functions."""
        return frozenset(n.name for n in ast.parse(self.source).body if isinstance(n, ast.FunctionDef))

    def nanhunt_yaml(self, *, faulty: bool = True) -> dict[str, Any]:
        """Return the configuration: an import string for each of the usual functions that it has, and CONFIG."""
        usual = {
            "model": "build_model", "data": "batches", "loss": "compute_loss", "optimizer": "make_optimizer",
            "scheduler": "make_scheduler", "train_step": "train_step",
        }  # fmt: skip
        body: dict[str, Any] = {k: f"train:{f}" for k, f in usual.items() if f in self.functions}
        if "train_step" in body:
            body.pop("loss", None)
        body |= self.config | ({} if faulty else self.mended)
        return {k: v for k, v in body.items() if v is not None}

    def write(self, folder: Path, *, faulty: bool) -> None:
        """Write `train.py` and `nanhunt.yaml` into a folder, as a user would have them."""
        import yaml

        folder.mkdir(parents=True, exist_ok=True)
        source = self.source if faulty else self.source.replace(_FAULTY, "FAULTY = False", 1)
        (folder / "train.py").write_text(source)
        (folder / "nanhunt.yaml").write_text(yaml.safe_dump(self.nanhunt_yaml(faulty=faulty), sort_keys=False))

    def lines(self) -> frozenset[int]:
        """Numbers of the lines that the truth names."""
        texts = self.source.splitlines()
        stated = _stated_lines(self.source)
        return frozenset(
            i for i, text in enumerate(texts, 1) if i not in stated and any(t in text for t in self.truth.line)
        )


def _stated_lines(source: str) -> frozenset[int]:
    """Lines of TRUTH itself, which quotes the lines that it names."""
    found: set[int] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in _STATED:
            found |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return frozenset(found)


def programs(*patterns: str) -> list[Program]:
    """Return the corpus in order of name, or the programs whose name matches any of the globs."""
    found = [Program.read(path) for path in sorted(PROGRAMS.glob("*/*.py"))]
    if not patterns:
        return found
    from fnmatch import fnmatch

    return [p for p in found if any(fnmatch(p.name, f"*{pattern}*") for pattern in patterns)]

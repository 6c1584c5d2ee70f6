"""Makes docs/trials.md: the rules of trials and grades, and a worked example of each kind, as the report printed it.

python docs/trials_page.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGE = DOCS / "trials.md"
sys.path.insert(0, str(ROOT))

from nanhunt.interventions import Trial  # noqa: E402
from nanhunt.library import library  # noqa: E402
from nanhunt.trace.reader import Trace  # noqa: E402
from nanhunt.trace.schema import NoteKind  # noqa: E402
from tests.corpus.program import PROGRAMS, Program, programs  # noqa: E402

HEAD = """\
<!-- made by docs/trials_page.py (make gallery): change that file, not this page -->

# Trials

A ranked list is worth more when the tool has tried it. Behind the hunt, `nanhunt replay` runs the bad step again (of a
spike, or of a run that ran away, the steps from its lead on), each time with one thing changed, and the report says
which changes removed the fault.

```
nanhunt replay ckpt.pt                                 # trials that the suspects ask for
nanhunt replay ckpt.pt --trial clip-norm               # on a trace that is there: runs this one, and adds it
nanhunt replay ckpt.pt --reference ckpt-older.pt       # also tries the weights of another checkpoint
nanhunt replay ckpt.pt --trials-budget 300             # seconds; without it four times the replay's own, at least 20
nanhunt trials                                         # the list of all
nanhunt trials trace.parquet                           # what was tried, and what came out
```

## What makes a trial valid

1. **The baseline fails first**, in the same process: `exact` runs the identical steps. Where they are healthy, nothing
   that cures them proves anything; no other trial is run, but for the question whether a healthy step before comes out
   as it was seen (`exact-before`).
2. **What was changed is read back** from the run, not from the intention, and shown. A change that turned out to change
   nothing, that could not be made, that acts behind the fault, or under which the scaler skipped the step, is `failed`,
   with its reason; never silently `persists`.
3. **One factor at a time.** Weights, moments, buffers, random generators, batches, settings and scaler are put back
   behind each trial to the bit; a test runs every one of them and compares.
4. **A placebo of equal size** where there is one: as many other samples, another module of the same class, other
   parameters of the same number of elements, all other layers. It is run where its trial cured.
5. **A control of equal norm** for what shrinks an update: `v-norm` makes each update as short as `v-floor` made it, in
   its own direction; `moments-norm` and `backward-norm` do the same for `moments-reset` and `own-backward`. Where the
   control cures as well, it was the length.
6. **The outcome is declared beforehand**, by the cause's prediction, and so is the measure: of a NaN, that loss,
   gradients, weights, buffers and moments are finite; of a spike, that the loss at its alarm is back within 6 robust
   deviations (a tenth, at least) of the baseline, and no further than half of the rise above it; of a run that ran away
   into an overflow, that the loss stays below twice its baseline; of zeros, that half of them are gone. The double where
   of `safe-argument` cures only where no element that it concerns gets another gradient than zero: else its slope is cut.

## Which are run

Suspects predict what trials will do. The next trial is the one that tells most for each second: it separates suspects
that predict different outcomes, or may confirm the first one. A suspect that a trial contradicts asks for no more. The
budget bounds all of it but what was asked for by name; a trial that it cuts off is named among the assumptions.

## Grades

| grade | rule |
| --- | --- |
| proved | an arithmetic certificate, re-checked; no trial is needed |
| confirmed | the baseline fails, a trial that the cause stakes itself on cures as predicted, every such prediction holds, and where the trial has a placebo or control, one was run that does not cure and none does. It acted on what the cause accuses: its samples, layers or parameter |
| supported | the cause's own measurement is there; no trial decided |
| consistent | it fits the picture, and so do others |
| refuted | the baseline fails, and a trial that had to cure does not |

Some predictions neither confirm nor refute: a tenth of the learning rate helps against much, so that it is shown as a
fix that was tried and worked, and the grade stays.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A program of the corpus, the trials that are asked for besides, and what must come out for the words to be true."""

    title: str
    program: str
    words: str
    asked: tuple[str, ...] = ()
    outcomes: dict[str, str] = field(default_factory=dict)
    #: also give the mended twin's checkpoint as the reference
    reference: bool = False


EXAMPLES = (
    Example(
        title="The very same step",
        program="hardware-fault/vae_bad_tile",
        words="The identical step is healthy each time it is run again, and the step before it comes out as it was seen, "
        "to the bit: what happened once was no arithmetic of the run's.",
        outcomes={"exact": "cured", "exact-before": "persists"},
    ),
    Example(
        title="Formats",
        program="activation-overflow/accum3_fp16_one_sample",
        words="fp32 and bf16 cure, so the format is to blame. Which part of it? fp32 cut to fp16's *range* fails, fp32 cut "
        "to fp16's *rounding* does not: an overflow. The line in fp64 and the module in fp32 do not help, as what they put "
        "out goes back to fp16, which cannot hold it.",
        asked=("range-only", "rounding-only", "module-fp32", "op-fp64"),
        outcomes={"fp32": "cured", "bf16": "cured", "range-only": "persists", "rounding-only": "cured",
                  "op-fp64": "persists", "module-fp32": "persists"},
    ),
    Example(
        title="Samples and batches",
        program="bad-sample/one_giant_sample",
        words="Without sample 6 the loss stays at its baseline; without another one it does not. The state is not to blame: "
        "healthy batches on it give healthy losses.",
        asked=("swap-batch",),
        outcomes={"drop-samples": "cured", "drop-placebo": "persists", "swap-batch": "cured"},
    ),
    Example(
        title="Loss scales",
        program="gradient-overflow/credit_min_scale",
        words="Gradients are finite at a loss scale of 1, and up to 1024. A fresh scaler does not help: it starts higher "
        "still.",
        asked=("scale-halved", "fresh-scaler", "zero-grad"),
        outcomes={"scale-1": "cured", "scale-halved": "cured", "fresh-scaler": "persists", "zero-grad": "persists"},
    ),
    Example(
        title="The optimizer's state, with its control",
        program="adam-v-collapse/auxiliary_switched_on",
        words="Raising the second moment of the suspect parameters cures, of as many others it does not. But updates that "
        "are as short in their own direction cure as well: it is their length, and the cause stays supported.",
        outcomes={"v-floor": "cured", "v-placebo": "persists", "v-norm": "cured"},
    ),
    Example(
        title="Clipping and the learning rate",
        program="gradient-explosion/stacked_rnn_long_windows",
        words="Clipped at the norm of the healthy steps the run goes on; a tenth of the rate is not enough, for the "
        "gradient is thousands of times its size.",
        asked=("clip-value", "clip-adaptive", "lr-0.1"),
        outcomes={"clip-norm": "cured", "clip-adaptive": "cured", "lr-0.1": "persists"},
    ),
    Example(
        title="A backward of one's own",
        program="faulty-backward/velocity_film_sign",
        words="Autograd's derivative of the function's own forward, in the place of its hand-written backward, and the run "
        "does not run away; updates as short, in the wrong direction, do not help.",
        outcomes={"own-backward": "cured", "backward-norm": "persists"},
    ),
    Example(
        title="Initial values",
        program="bad-init/vit_head",
        words="The suspect layer drawn anew helps, all other layers drawn anew do not.",
        outcomes={"fresh-init": "cured", "init-placebo": "persists"},
    ),
    Example(
        title="Another checkpoint",
        program="poisoned-state/gcn_weight",
        words="The weights of an earlier checkpoint instead: they differ in one tensor, and the fault is gone.",
        outcomes={"restore-weights": "cured"},
        reference=True,
    ),
    Example(
        title="The model's parts",
        program="attention-logit-growth/vit_no_qk_norm",
        words="Capped scores help, the suspect's own fix; so does a third of the rate, and the report does not claim more "
        "than that. The norms' epsilons and the kernels have no part in it.",
        asked=("scores-capped", "scores-fp32", "norm-eps", "reference-kernels", "lr-0.3"),
        outcomes={"scores-capped": "cured", "norm-eps": "persists", "reference-kernels": "persists", "lr-0.3": "cured"},
    ),
)  # fmt: skip


def main() -> int:
    """Write the page."""
    parts = [HEAD, "## All trials\n\n" + listing(), "## A worked example of each kind"]
    parts.append(
        f"Programs of `{PROGRAMS.relative_to(ROOT)}`, replayed and reported by the command line; of each report the trials."
    )
    with tempfile.TemporaryDirectory() as scratch:
        for index, example in enumerate(EXAMPLES):
            parts.append(section(example, Path(scratch) / str(index)))
            print(example.title, file=sys.stderr)
    PAGE.write_text("\n\n".join(part.strip("\n") for part in parts) + "\n")
    return 0


def listing() -> str:
    """Return the table of the library."""
    rows = [f"| `{i.name}` | {i.question}{f' (`{i.placebo_of}`)' if i.placebo_of else ''} |" for i in library()]
    return "\n".join(["| trial | question (of which it is the placebo or control) |", "| --- | --- |", *rows])


def section(example: Example, folder: Path) -> str:
    """Replay an example and return its part of the page. Raises AssertionError where it came out otherwise."""
    (program,) = (p for p in programs() if p.name == example.program)
    _make(program, folder / "faulty", faulty=True)
    options = [option for name in example.asked for option in ("--trial", name)]
    if example.reference:
        _make(program, folder / "twin", faulty=False)
        options += ["--reference", "../twin/ckpt.pt"]
    _nanhunt(folder / "faulty", "replay", "ckpt.pt", "-q", *options)
    report = _nanhunt(folder / "faulty", "report", "trace.parquet")
    found = (Trial.from_json(b) for b in Trace.open(folder / "faulty" / "trace.parquet").notes_of(NoteKind.TRIAL))
    outcomes = {trial.name: trial.outcome for trial in found}
    for name, outcome in example.outcomes.items():
        assert outcomes.get(name) == outcome, f"{example.program}: {name} is {outcomes.get(name)}: mend the words"
    headline = report[: report.index("\n  run ")]
    table = report[report.index("\ntrials ") : report.index("\ncleared ")]
    command = " ".join(["nanhunt replay ckpt.pt", *options])
    return f"### {example.title}\n\n`{example.program}`: {example.words}\n\n```\n$ {command}\n{headline}\n{table.rstrip()}\n```"


def _make(program: Program, folder: Path, *, faulty: bool) -> None:
    """Write a program and its checkpoint, in a process of its own."""
    program.write(folder, faulty=faulty)
    code = (
        "import os, sys; from pathlib import Path; from tests.corpus.checkpoint import save_checkpoint;"
        "from tests.corpus.program import programs; os.chdir(sys.argv[1]);"
        "save_checkpoint(next(p for p in programs() if p.name == sys.argv[2]), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), program.name], cwd=ROOT, check=True, capture_output=True)


def _nanhunt(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "nanhunt", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())

"""Evidence for causes: of traces written by hand, and of small losses that the hunt itself ran into the fault."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.hunt import HuntSettings, hunt
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Birth, Hop, Manifest, NoteKind, Observation, Onset
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.batches import BatchSource
from nanhunt.training.run import TrainingRun
from tests.diagnosis.mini_losses import Case, Net

EvidenceOf = Callable[..., Evidence]
Hunted = Callable[..., Evidence]

#: Steps of a hunted loss; the fault is in all steps from HOT on.
STEPS, HOT = 6, 2


@pytest.fixture
def evidence_of(tmp_path: Path) -> EvidenceOf:
    """A function that writes a trace of an onset, births, notes and rows, and returns its evidence."""

    number = itertools.count()

    def build(
        onset: Onset | None = None,
        *births: Birth,
        rows: Sequence[Observation] = (),
        notes: Iterable[tuple[NoteKind, dict[str, Any]]] = (),
        to: str = "loss",
        way: Sequence[str] = (),
        config: dict[str, Any] | None = None,
    ) -> Evidence:
        path = tmp_path / f"trace{next(number)}.parquet"  # a trace is read when it is asked, so each has its file
        writer = TraceWriter(path, Manifest(config=config or {}))
        writer.write(rows)
        if onset is not None:
            writer.note(NoteKind.ONSET, onset.to_json())
        for birth in births:
            writer.note(NoteKind.BIRTH, birth.to_json())
        if births:
            writer.note(
                NoteKind.LINEAGE,
                {
                    "hops": [Hop(seq=i, phase="forward", op=op, module="").to_json() for i, op in enumerate(way)],
                    "to": to,
                },
            )
        for kind, body in notes:
            writer.note(kind, body)
        writer.close()
        return Evidence(Trace.open(path))

    return build


@pytest.fixture
def hunted(tmp_path: Path) -> Hunted:
    """A function that hunts a loss of `mini_losses` without trials and returns the evidence."""

    def run(case: Case, *, hot: bool = True, zoom: bool = True) -> Evidence:
        torch.manual_seed(1)
        model = Net().to(case.weights)
        training = TrainingRun(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=case.lr, eps=case.eps, foreach=False),
            loss=case.loss,
            batches=BatchSource(_batches(case, hot), first_step=0, accumulate=1, device=torch.device("cpu")),
            device=torch.device("cpu"),
            autocast=case.autocast,
            root=Path(__file__).parent,
        )
        with TraceWriter(tmp_path / "trace.parquet", Manifest()) as writer:
            hunt(training, writer, HuntSettings(steps=STEPS, trials=False, zoom=zoom))
        return Evidence(Trace.open(tmp_path / "trace.parquet"))

    return run


def _batches(case: Case, hot: bool) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(7)
    return [
        {
            "x": torch.randn(8, 8, generator=generator).to(case.weights),
            "y": torch.randint(1, 4, (8,), generator=generator),
            "hot": hot and step >= HOT,
            "counted": torch.tensor(0.0 if hot and step >= HOT else 8.0),
        }
        for step in range(STEPS + 1)
    ]

"""Probes add no host synchronisation inside a step (runs where there is a GPU)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanhunt.finiteness import Finiteness
from nanhunt.probes.module import watch_modules
from nanhunt.probes.op import OpProbe
from nanhunt.probes.optimizer import OptimizerProbe, record_state
from nanhunt.probes.probe import RowBuffer
from nanhunt.probes.softmax import watch_softmax
from nanhunt.trace.schema import Phase
from nanhunt.training.batches import BatchSource
from nanhunt.training.run import TrainingRun


def run_on(device: torch.device) -> TrainingRun:
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 8)).to(device)
    data = [(torch.randn(16, 64), torch.randint(0, 8, (16,))) for _ in range(4)]
    return TrainingRun(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        loss=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]),
        batches=BatchSource(data, first_step=0, accumulate=1, device=device),
        device=device,
    )


@pytest.mark.cuda
def test_probes_never_wait_for_the_device_inside_a_step() -> None:
    run = run_on(torch.device("cuda"))
    rows = RowBuffer()
    rows.blocks.on = True
    finite, optimizer = Finiteness(run), OptimizerProbe(run, rows)
    batch, wide = run.batches.get(0, 0), torch.randn(4096, 2048, device="cuda")
    for _ in range(2):  # the first step makes the optimizer's state, which copies from the host
        run.optimizer.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with watch_modules(run.roots(), rows), watch_softmax(run, rows) as heard:
                loss = run.loss(run.model, batch)
                nn.functional.cross_entropy(wide, wide.argmax(1))  # logits of which some rows are heard
                finite.loss_made(0, loss)
                heard.backward_begins(0)
                loss.backward()
            optimizer.gradients_ready()
            finite.gradients_ready()
            optimizer.clipped()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        run.optimizer.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.updated()
            finite.updated()
            record_state(run, rows, Phase.UPDATE)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert rows.take()
    assert rows.blocks.take(0)
    assert finite.resolve().losses


@pytest.mark.cuda
def test_the_op_probe_never_waits_for_the_device_before_the_step_is_over() -> None:
    run = run_on(torch.device("cuda"))
    batch = run.batches.get(0, 0)
    for _ in range(2):
        run.optimizer.zero_grad()
        rows = RowBuffer()
        rows.recording = False
        probe = OpProbe(run, rows)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with probe.stack.following(run.roots()), probe:
                loss = run.loss(run.model, batch)
                loss.backward()
                probe.gradients_ready()
                probe.clipped()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        run.optimizer.step()
    probe.resolve()
    assert len(probe.events) > 10
    assert not probe.terminals


def test_the_probes_rows_are_read_in_one_go_at_the_end() -> None:
    run = run_on(torch.device("cpu"))
    rows = RowBuffer()
    with watch_modules(run.roots(), rows):
        run.loss(run.model, run.batches.get(0, 0)).backward()
    taken = rows.take()
    assert {r.role for r in taken} == {"output", "grad_output"}
    assert all(r.stats is not None for r in taken)
    assert not list(rows.take())

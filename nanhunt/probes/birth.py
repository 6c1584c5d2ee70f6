"""What is known of a birth: its place, its operands, its certificate, the elements it went wrong at."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.certificate import (
    bad_mask,
    in_fp64,
    slope_in_fp64,
    tensor_arguments,
    verdict_of,
    worst_output,
)
from nanhunt.probes.closer import Closer
from nanhunt.probes.discard import discard_of
from nanhunt.probes.elements import Layout, offending, positions_of, samples_of
from nanhunt.probes.event import Capture, OpEvent, Seen
from nanhunt.probes.op_facts import lane_of
from nanhunt.probes.probe import dtype_name
from nanhunt.probes.source import code_of, place
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.stats.torch_kernel import plain_values
from nanhunt.trace.schema import Birth, Observation, Operand, Role

__all__ = ["ancestry", "consumers", "describe_birth", "masked_facts", "with_discard", "with_slope"]

_SOFTMAX_LIKE = ("aten._softmax", "aten._log_softmax", "aten._safe_softmax", "aten.logsumexp")


def describe_birth(event: OpEvent, events: list[OpEvent], root: Path, layout: Layout) -> Birth:
    """Return what is known of a birth; `layout` is the batch's, which says nothing of weights and their updates."""
    capture = event.capture
    layout = layout if event.phase.value in ("forward", "backward") else Layout()
    facts: dict[str, Any] = {}
    birth: dict[str, Any] = {
        "kind": event.birth or "carried",
        "seq": event.seq,
        "phase": event.phase.value,
        "op": event.op,
        "module": event.module,
        "micro": event.micro,
        "source": place(event.source, root) if event.source else None,
        "code": code_of(event.source) if event.source else "",
        "forward_op": events[event.forward].op if event.forward is not None else None,
        "node": event.node,
        "parameter": _parameter(event, events),
    }
    if capture is None:
        return Birth(**birth, inputs=[_bare(s) for s in event.inputs], fp64_detail="operands not kept", facts=facts)
    wide = in_fp64(capture)
    bad_name, output = worst_output(capture)
    twin = wide.outputs.get(bad_name)
    verdict, amax = verdict_of(output, twin)
    named = {_kept_name(event, s): s for s in event.inputs_of(capture.lane)}
    mask = bad_mask(output)
    facts |= _tensor_facts(event, capture, output, mask)
    facts |= _positions(mask, layout)
    return Birth(
        **birth,
        inputs=[_operand(n, t, named.get(n)) for n, t in tensor_arguments(capture)][:12],
        outputs=[_operand(n, t, None) for n, t in capture.outputs][:4],
        arguments=_plain_arguments(capture),
        fp64=verdict,
        fp64_amax=amax,
        fp64_detail=wide.trouble,
        elements=offending(capture, output, mask, twin, layout),
        bad=int(mask.sum()),
        of=output.numel(),
        samples=samples_of(mask, layout),
        facts=facts,
    )


def _positions(mask: Tensor, layout: Layout) -> dict[str, Any]:
    found = positions_of(mask, layout)
    return {"positions": found} if found else {}


# --- what the operands show ------------------------------------------------------------------------------------------


def _plain_arguments(capture: Capture) -> dict[str, Any]:
    """Return the arguments that are no tensors, as JSON values."""
    names = [a.name for a in capture.func._schema.arguments]
    pairs = [*zip(names, capture.args, strict=False), *capture.kwargs.items()]
    plain: dict[str, Any] = {}
    for name, value in pairs:
        if isinstance(value, torch.dtype):
            plain[name] = str(value).removeprefix("torch.")
        elif isinstance(value, (bool, int, float, str)):
            plain[name] = value
        elif isinstance(value, (list, tuple)) and all(isinstance(v, (bool, int, float)) for v in value):
            plain[name] = list(value)
    return plain


def _operand(name: str, tensor: Tensor, seen: Seen | None) -> Operand:
    shape = list(tensor.shape)
    values = plain_values(tensor.detach()).double()
    finite = values[torch.isfinite(values)]
    magnitude = finite.abs()
    nonzero = magnitude[magnitude > 0]
    return Operand(
        name=name,
        dtype=dtype_name(tensor),
        shape=shape,
        numel=tensor.numel(),
        nan=int(torch.isnan(values).sum()),
        posinf=int((values == math.inf).sum()),
        neginf=int((values == -math.inf).sum()),
        zero=int((values == 0).sum()),
        amax=float(magnitude.max()) if finite.numel() else 0.0,
        amin=float(nonzero.min()) if nonzero.numel() else 0.0,
        low=float(finite.min()) if finite.numel() else 0.0,
        high=float(finite.max()) if finite.numel() else 0.0,
        origin=_origin(seen),
    )


def _origin(seen: Seen | None) -> str:
    if seen is None:
        return ""
    if seen.origin:
        return seen.origin
    return f"op {seen.writer}" if seen.writer is not None else ""


def _bare(seen: Seen) -> Operand:
    flag = {"nan": int(seen.nan), "posinf": int(seen.posinf), "neginf": int(seen.neginf)}
    return Operand(name=seen.name, dtype="", shape=[], origin=_origin(seen), **flag)


def _kept_name(event: OpEvent, seen: Seen) -> str:
    """Return the name that a tensor has in the capture, where a lane's lists have one entry."""
    return f"{seen.name.rpartition('.')[0]}.0" if lane_of(event.op, seen.name) else seen.name


def _parameter(event: OpEvent, events: list[OpEvent], reach: int = 6) -> str | None:
    """Return the parameter that an op of the update worked on, None in forward and backward.

    By the tensors of the lane that went bad; an intermediate of the update (Adam's denominator) has no name of its own,
    so its inputs are asked, and theirs.
    """
    if event.phase.value not in ("unscale", "clip", "update") and "AccumulateGrad" not in (event.node or ""):
        return None
    lane = event.birth_lane or next((o.lane for o in event.outputs if o.bad), "")
    layer = [(event, lane)]
    for _ in range(reach):
        seen = [s for e, at in layer for s in (*(o for o in e.outputs if o.lane in ("", at)), *e.inputs_of(at))]
        for kind, _, name in (s.origin.partition(" ") for s in seen):
            if kind in ("parameter", "gradient"):
                return name
            if kind == "state":
                return name.rpartition(".")[0]
        writers = {(s.writer, s.writer_lane) for s in seen if s.writer is not None and s.writer < event.index}
        layer = [(events[i], at) for i, at in sorted(writers) if events[i].phase == event.phase]
    return None


# --- where operands come from -----------------------------------------------------------------------------------------


def ancestry(
    event: OpEvent, events: list[OpEvent], rows: Sequence[Observation], root: Path, reach: int = 10
) -> list[dict[str, Any]]:
    """Return the ops that an op's operands come from, nearest first: the graph's own edges, up to 64 of them.

    `rows` are the step's, for each op's counts of zeros and infinities.
    """
    stats = {row.seq: row.stats for row in rows if row.role == Role.OP.value}
    queue, seen = deque([(event.index, 0)]), {event.index}
    told: list[dict[str, Any]] = []
    while queue and len(told) < 64:
        index, depth = queue.popleft()
        at = events[index]
        writers = [s.writer for s in at.inputs if s.writer is not None]
        if index != event.index:
            told.append(_ancestor(at, writers, stats.get(at.seq + 1), root))
        for writer in writers if depth < reach else []:
            if writer not in seen and events[writer].phase.value == "forward":
                seen.add(writer)
                queue.append((writer, depth + 1))
    return told


def _ancestor(event: OpEvent, writers: list[int], stats: TensorStats | None, root: Path) -> dict[str, Any]:
    return {
        "index": event.index,
        "op": event.op,
        "module": event.module,
        "source": place(event.source, root) if event.source else None,
        "code": code_of(event.source) if event.source else "",
        "writers": writers,
        "origins": [s.origin for s in event.inputs if s.writer is None and s.origin],
        "scalars": list(event.scalars),
        "numel": stats.numel if stats else 0,
        "zero": stats.zero if stats else 0,
        "neginf": stats.neginf if stats else 0,
        "posinf": stats.posinf if stats else 0,
        "nan": stats.nan if stats else 0,
        "amax": stats.amax if stats else 0.0,
    }


# --- the slope ------------------------------------------------------------------------------------------------------


def consumers(index: int, events: list[OpEvent], most: int = 4) -> list[int]:
    """Return the products that take a forward op's output, the first few: a factor of zero there throws it away."""
    found = [
        e.index
        for e in events[index + 1 :]
        if e.phase.value == "forward"
        and e.op.startswith("aten.mul.Tensor")
        and any(s.writer == index for s in e.inputs)
    ]
    return found[:most]


def with_slope(birth: Birth, event: OpEvent, events: list[OpEvent], closer: Closer, layout: Layout) -> Birth:
    """Add to a backward birth what the closer look at its forward op shows: the slope in fp64, and a factor of zero."""
    forward = event.forward
    capture = closer.captures.get(forward) if forward is not None else None
    slope = closer.slopes.get(forward) if forward is not None else None
    if forward is None or capture is None or slope is None:
        return replace(birth, slope_detail="the forward op was not met again, or has no autograd node")
    bad = next((i for i, g in enumerate(slope.outgoing) if g is not None and bool(bad_mask(g).any())), None)
    if bad is None:
        return replace(birth, slope_detail="the forward op's gradient is finite in the repetition")
    wide = slope_in_fp64(capture, slope)
    output, twin = slope.outgoing[bad], wide.outputs.get(f"grad.{bad}")
    assert output is not None
    verdict, amax = verdict_of(output, twin)
    mask = bad_mask(output)
    incoming = tuple(g for g in slope.incoming if g is not None)
    by = _zero_factor(forward, events, closer, mask)
    factor = {"zero_factor": by} if by and "discarded_by" not in birth.facts else {}
    places = {} if birth.facts.get("positions") else _positions(mask, layout)
    return replace(
        birth,
        slope=verdict,
        slope_amax=amax,
        slope_detail=wide.trouble,
        slope_elements=offending(capture, output, mask, twin, layout, extra=incoming[:1]),
        samples=birth.samples or samples_of(mask, layout),
        facts={**birth.facts, **factor, **places},
    )


def with_discard(birth: Birth, event: OpEvent, events: list[OpEvent], closer: Closer, root: Path) -> Birth:
    """Add to a birth which select throws its bad elements away, where one does, and whether it was asked."""
    index = event.forward if event.forward is not None else event.index
    if events[index].phase.value != "forward":
        return birth
    bad = bad_mask(worst_output(event.capture)[1]) if event.capture is not None and index == event.index else None
    found = discard_of(index, bad, events, closer)
    if found is None:
        return birth
    facts = {
        "discarded_by": found.event.op,
        "discarded_at": place(found.event.source, root) if found.event.source else "",
        "discarded": found.share,
        "discard_checked": found.checked,
    }
    return replace(birth, facts={**birth.facts, **facts})


def _zero_factor(index: int, events: list[OpEvent], closer: Closer, mask: Tensor) -> str | None:
    """Return the product that multiplies every bad element of a forward op's output by zero."""
    for later in consumers(index, events):
        capture = closer.captures.get(later)
        ours = [s.writer == index for s in events[later].inputs]
        if capture is None or len(capture.args) != 2 or sum(ours) != 1 or len(ours) != 2:
            continue
        factor = capture.args[ours.index(False)]
        try:
            values = factor.expand(mask.shape)[mask]
        except RuntimeError:
            continue
        if bool((values == 0).all()):
            return events[later].op
    return None


# --- facts that tell one cause from another --------------------------------------------------------------------------


def masked_facts(event: OpEvent, capture: Capture, layout: Layout) -> tuple[dict[str, Any], list[int]]:
    """Return what the escape of a mask's -inf shows: rows without any other value, targets that are masked; and samples."""
    arguments = dict(tensor_arguments(capture))
    scores = arguments.get("self")
    if scores is None or not scores.is_floating_point() or scores.dim() == 0:
        return {}, []
    masked = scores == -math.inf
    facts: dict[str, Any] = {"masked": int(masked.sum()), "scores": masked.numel()}
    picked = arguments.get("target", arguments.get("index"))
    rows: Tensor | None = None
    if event.op.startswith("aten.nll_loss") and picked is not None and scores.dim() == 2:
        valid = (picked >= 0) & (picked < scores.shape[1])
        rows = masked.gather(1, picked.clamp(0, scores.shape[1] - 1).unsqueeze(1)).squeeze(1) & valid
        facts["masked_targets"] = int(rows.sum())
    elif event.op.startswith("aten.gather") and picked is not None:
        rows = masked.gather(int(capture.args[1]), picked).reshape(masked.shape[0], -1).any(dim=1)
        facts["masked_targets"] = int(rows.sum())
    else:
        dims = next((a for a in capture.args[1:] if isinstance(a, (int, list, tuple))), None)
        dims = [dims] if isinstance(dims, int) else list(dims or range(masked.dim()))
        whole = masked.all(dim=dims[0]) if len(dims) == 1 else masked
        facts["fully_masked_rows"] = int(whole.sum()) if len(dims) == 1 else 0
        rows = whole if len(dims) == 1 and whole.dim() else None
    found = samples_of(rows, layout) if rows is not None and rows.dim() else []
    return facts, found


def _tensor_facts(event: OpEvent, capture: Capture, output: Tensor, mask: Tensor) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    arguments = dict(tensor_arguments(capture))
    if event.op.startswith(_SOFTMAX_LIKE) and "self" in arguments:
        facts |= _masked_rows(arguments["self"], capture)
    if "scaled_dot_product" in event.op and {"query", "key"} <= arguments.keys():
        query, key = arguments["query"].double(), arguments["key"].double()
        if query.shape[1] == key.shape[1]:
            scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
            facts["score_amax"] = float(scores.abs().max())
    if event.phase.value == "backward":
        incoming = [t for n, t in arguments.items() if t.shape == output.shape and t.is_floating_point()]
        facts["incoming_zero"] = any(bool((t[mask] == 0).all()) for t in incoming if bool(mask.any()))
    return facts


def _masked_rows(scores: Tensor, capture: Capture) -> dict[str, Any]:
    """Count the rows of a softmax whose every score is -inf."""
    dims = capture.args[1] if len(capture.args) > 1 else -1
    dim = dims[0] if isinstance(dims, (list, tuple)) and dims else dims
    if scores.dim() == 0 or not isinstance(dim, int):
        return {}
    masked = (scores == -math.inf).all(dim=dim)
    return {
        "fully_masked_rows": int(masked.sum()),
        "rows": masked.numel(),
        "posinf_scores": int((scores == math.inf).sum()),
        "nan_scores": int(torch.isnan(scores).sum()),
    }

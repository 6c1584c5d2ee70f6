"""The certificate of a birth: the op again in fp64 from its recorded inputs, and the elements it went wrong at.

Finite in fp64 and larger than the output's format holds: range. Finite and within the format: rounding, an overflow
inside a fused kernel, or a wrong kernel. Non-finite in fp64 too: the operation itself is undefined there. The re-run
needs no trust in the tool: inputs, output and the fp64 value of up to eight elements stand in the trace.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.event import Capture, OpEvent, Seen, lane_of
from nanhunt.probes.probe import dtype_name
from nanhunt.probes.source import line_text, place
from nanhunt.stats.torch_kernel import plain_values
from nanhunt.trace.schema import Birth, Element, Operand
from nanhunt.training.tree import map_tensors, tensors_of

__all__ = ["describe_birth"]

#: Elements shown.
_SHOWN = 8
_SOFTMAX_LIKE = ("aten._softmax", "aten._log_softmax", "aten._safe_softmax", "aten.logsumexp")
_SELECTS = ("aten.where", "aten.masked_fill", "aten.index", "aten.masked_select", "aten.nan_to_num", "aten.clamp",
            "aten.maximum", "aten.minimum", "aten.gather", "aten.masked_scatter")  # fmt: skip
_WIDE = {torch.complex64: torch.complex128, torch.complex32: torch.complex128}


def describe_birth(event: OpEvent, events: list[OpEvent], root: Path, size: int | None) -> Birth:
    """Return what is known of a birth; `size` is the batch's number of samples."""
    capture = event.capture
    facts = _facts(event, events)
    birth: dict[str, Any] = {
        "kind": event.birth or "carried",
        "seq": event.seq,
        "phase": event.phase.value,
        "op": event.op,
        "module": event.module,
        "micro": event.micro,
        "source": place(event.source, root) if event.source else None,
        "code": line_text(event.source) if event.source else "",
        "forward_op": events[event.forward].op if event.forward is not None else None,
        "node": event.node,
        "parameter": _parameter(event, events),
    }
    if capture is None:
        return Birth(**birth, inputs=[_bare(s) for s in event.inputs], fp64_detail="operands not kept", facts=facts)
    wide, trouble = _in_fp64(capture)
    bad_name, output = _worst_output(capture)
    twin = wide.get(bad_name) if wide else None
    verdict, amax = _verdict(output, twin)
    named = {_kept_name(event, s): s for s in event.inputs_of(capture.lane)}
    mask = _bad_mask(output)
    facts |= _tensor_facts(event, capture, output, mask)
    return Birth(
        **birth,
        inputs=[_operand(n, t, named.get(n)) for n, t in _tensor_arguments(capture)][:12],
        outputs=[_operand(n, t, None) for n, t in capture.outputs][:4],
        arguments=_plain_arguments(capture),
        fp64=verdict,
        fp64_amax=amax,
        fp64_detail=trouble,
        elements=_elements(capture, output, mask, twin),
        bad=int(mask.sum()),
        of=output.numel(),
        samples=_samples(mask, size),
        facts=facts,
    )


# --- the op again in fp64 --------------------------------------------------------------------------------------------


def _in_fp64(capture: Capture) -> tuple[dict[str, Tensor], str]:
    """Run the op on its recorded inputs in fp64; return outputs by name, or {} and why not."""
    if _draws(capture):
        return {}, "the op draws random numbers: another run is not this run"
    args, kwargs = tuple(_widened(v) for v in capture.args), {k: _widened(v) for k, v in capture.kwargs.items()}
    if capture.func._schema.name.endswith("softmax") and len(args) == 3 and isinstance(args[2], bool):
        args = (*args[:2], False)  # half_to_float is for half inputs only
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            result = capture.func(*args, **kwargs)
    except Exception as error:  # a kernel without fp64: the certificate is not to be had, the birth stands
        return {}, f"no fp64 kernel: {str(error).splitlines()[0][:120]}"
    outputs = dict(tensors_of(result, "output"))
    names = [a.name for a in capture.func._schema.arguments]
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        for path, tensor in tensors_of(value, name):
            outputs.setdefault(path, tensor)
    return outputs, ""


def _draws(capture: Capture) -> bool:
    """Whether the op draws random numbers; attention with a dropout of zero is of that sort by name only."""
    names = [a.name for a in capture.func._schema.arguments]
    given = {**dict(zip(names, capture.args, strict=False)), **capture.kwargs}
    seeded = torch.Tag.nondeterministic_seeded in capture.func.tags
    return seeded and not ("scaled_dot_product" in capture.func._schema.name and given.get("dropout_p", 0.0) == 0.0)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else _WIDE.get(value, value)
    return map_tensors(_wide, value)


def _wide(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return tensor.double()
    return tensor.to(_WIDE[tensor.dtype]) if tensor.dtype in _WIDE else tensor.clone()


def _worst_output(capture: Capture) -> tuple[str, Tensor]:
    """Return the first output that has non-finite elements."""
    for name, tensor in capture.outputs:
        if tensor.numel() and bool(_bad_mask(tensor).any()):
            return name, tensor
    return capture.outputs[0]


def _bad_mask(tensor: Tensor) -> Tensor:
    """Return where the tensor is not finite, in its own shape (of a sparse one, of its values)."""
    values = plain_values(tensor)
    if not values.is_floating_point():
        return torch.zeros_like(values, dtype=torch.bool)
    bad = ~torch.isfinite(values.float() if values.element_size() == 1 else values)
    return bad.any(dim=-1) if tensor.is_complex() else bad


def _verdict(output: Tensor, twin: Tensor | None) -> tuple[str, float | None]:
    """Hold the fp64 values at the bad elements against the output's format."""
    if twin is None or twin.shape != output.shape or not (output.is_floating_point() or output.is_complex()):
        return "unavailable", None
    mask = _bad_mask(output)
    if plain_values(twin).shape[: mask.dim()] != mask.shape or not bool(mask.any()):
        return "unavailable", None
    values = plain_values(twin)[mask].double()
    if not bool(torch.isfinite(values).all()):
        return "non-finite", None
    amax = float(values.abs().max())
    # half an ulp above max still rounds to max; beyond the format is what rounds to inf
    limit = torch.finfo(output.dtype).max
    return ("beyond-range" if amax > limit else "in-range"), amax


# --- what the operands show ------------------------------------------------------------------------------------------


def _tensor_arguments(capture: Capture) -> list[tuple[str, Tensor]]:
    names = [a.name for a in capture.func._schema.arguments]
    pairs = [*zip(names, capture.args, strict=False), *capture.kwargs.items()]
    return [pair for name, value in pairs for pair in tensors_of(value, name)]


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


def _elements(capture: Capture, output: Tensor, mask: Tensor, twin: Tensor | None) -> list[Element]:
    """Return up to eight bad elements, with the inputs that stand at the same place where the op works by place."""
    if output.layout is not torch.strided:
        return []
    by_place = torch.Tag.pointwise in capture.func.tags or capture.lane or _name(capture).startswith(_SOFTMAX_LIKE)
    inputs = [t for _, t in _tensor_arguments(capture) if by_place and _broadcasts(t, output)]
    elements = []
    for coordinate in mask.nonzero()[:_SHOWN].tolist():
        at = tuple(coordinate)
        values = [
            float(t.expand(output.shape)[at].real if t.is_complex() else t.expand(output.shape)[at]) for t in inputs
        ]
        fp64 = float(twin[at]) if twin is not None and twin.shape == output.shape and not twin.is_complex() else None
        value = output[at]
        elements.append(
            Element(
                coordinate=coordinate,
                inputs=values,
                output=float(value.real if value.is_complex() else value),
                fp64=fp64,
            )
        )
    return elements


def _name(capture: Capture) -> str:
    return str(capture.func)


def _broadcasts(tensor: Tensor, output: Tensor) -> bool:
    if tensor.layout is not torch.strided:
        return False
    try:
        return bool(torch.broadcast_shapes(tensor.shape, output.shape) == output.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False


def _samples(mask: Tensor, size: int | None) -> list[int]:
    """Return the samples that the bad elements lie in: by a leading dimension of B, or of B × something.

    Empty where there is no such dimension, or where every sample is bad: then it is no sample's doing.
    """
    if not size or mask.dim() == 0 or mask.shape[0] % size or mask.shape[0] == 0:
        return []
    per_sample = mask.reshape(size, -1).any(dim=1)
    samples: list[int] = per_sample.nonzero().flatten().tolist()
    return samples if len(samples) < size else []


# --- facts that tell one cause from another --------------------------------------------------------------------------


def _facts(event: OpEvent, events: list[OpEvent]) -> dict[str, Any]:
    """Facts from the order of ops: is the forward value thrown away later, and by what."""
    forward = event.forward if event.forward is not None else event.index
    if events[forward].phase.value != "forward":
        return {}
    by = _discarded_by(forward, events)
    return {"discarded_by": by} if by else {}


def _discarded_by(index: int, events: list[OpEvent], reach: int = 3) -> str | None:
    """Return the select-like op that consumes this op's output within a few ops, if one does."""
    frontier = {index}
    for _ in range(reach):
        following: set[int] = set()
        for event in events[index + 1 : index + 400]:
            if event.phase.value != "forward" or not any(s.writer in frontier for s in event.inputs):
                continue
            if event.op.startswith(_SELECTS):
                return event.op
            if event.bad_outputs or event.index <= index + 40:
                following.add(event.index)
        frontier = following
    return None


def _tensor_facts(event: OpEvent, capture: Capture, output: Tensor, mask: Tensor) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    arguments = dict(_tensor_arguments(capture))
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

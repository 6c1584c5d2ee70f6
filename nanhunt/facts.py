"""Facts of a run that are no statistics of a tensor: what the batch holds, how the optimizer is set, what is poisoned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.probes.probe import dtype_name, modules_below, split_name
from nanhunt.stats.summarize import summarize
from nanhunt.training.batch_layout import batch_size
from nanhunt.training.run import TrainingRun
from nanhunt.training.tree import tensors_of

__all__ = ["batch_facts", "every_label_is_ignored", "optimizer_facts", "poison_facts"]

#: Labels that loss functions leave out: torch's ignore_index, and the -1 of nanoGPT and many others.
IGNORED = (-100, -1)
#: Samples whose statistics are kept one by one.
_SAMPLES = 256
#: Of the samples that carry the fault: how many are kept with their tokens or labels, and how many of these.
_SHOWN, _EXCERPT = 4, 512


def batch_facts(run: TrainingRun, step: int, samples: Sequence[int] = ()) -> dict[str, Any]:
    """Return, for each micro-batch of `step`, each tensor's shape, counts and extremes, and the same by sample.

    Of the named samples, those that carry the fault, tokens and labels themselves are there as well: somebody will want
    to look the text up.
    """
    micros = []
    for micro in range(run.accumulate):
        try:
            batch = run.batches.peek(step, micro)
        except KeyError:  # not kept any more
            break
        size = batch_size(batch)
        fields = [{"field": path, **_field_facts(tensor, size, samples[:_SHOWN])} for path, tensor in tensors_of(batch)]
        micros.append({"micro": micro, "size": size, "fields": fields})
    return {"step": step, "micros": micros}


def every_label_is_ignored(run: TrainingRun, step: int) -> bool:
    """Whether each micro-batch of a step has whole numbers of which a loss leaves out every one: torch's own, -100.

    A batch of -1 alone may be one of a class that is called so.
    """
    try:
        batches = [run.batches.peek(step, micro) for micro in range(run.accumulate)]
    except KeyError:  # not kept any more
        return False
    return all(any(_is_ignored(tensor) for _, tensor in tensors_of(batch)) for batch in batches)


def _is_ignored(tensor: Tensor) -> bool:
    is_whole = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    return is_whole and tensor.numel() > 0 and bool((tensor == IGNORED[0]).all())


def _field_facts(tensor: Tensor, size: int | None, samples: Sequence[int]) -> dict[str, Any]:
    """Describe one tensor of the batch: as labels or tokens where it is integer, as values where it is floating."""
    stats = summarize(tensor, histogram=False)
    facts: dict[str, Any] = {
        "dtype": dtype_name(tensor),
        "shape": list(tensor.shape),
        "numel": stats.numel,
        "nan": stats.nan,
        "inf": stats.posinf + stats.neginf,
        "amax": stats.amax,
    }
    by_sample = size is not None and tensor.dim() >= 1 and tensor.shape[0] == size <= _SAMPLES and tensor.numel() > 0
    if tensor.is_floating_point():
        if by_sample:
            rows = tensor.detach().reshape(tensor.shape[0], -1).double().cpu()
            finite = torch.where(torch.isfinite(rows), rows, 0.0)
            facts["sample_amax"] = finite.abs().amax(dim=1).tolist()
            facts["sample_nonfinite"] = (~torch.isfinite(rows)).sum(dim=1).tolist()
        return facts
    if tensor.dtype == torch.bool and by_sample:  # a mask, of which a sample may have nothing
        facts["sample_true"] = tensor.detach().reshape(tensor.shape[0], -1).sum(dim=1).tolist()
    if tensor.dtype == torch.bool or tensor.is_complex() or tensor.numel() == 0:
        return facts
    whole = tensor.detach().long().cpu()
    facts |= {
        "min": int(whole.min()),
        "max": int(whole.max()),
        "ignored": sum(int((whole == label).sum()) for label in IGNORED),
    }
    if by_sample and samples:
        facts["excerpts"] = [_excerpt(whole[sample], sample) for sample in samples if sample < whole.shape[0]]
    if by_sample and whole.dim() >= 2:
        facts["sample_ignored"] = [sum(int((row == label).sum()) for label in IGNORED) for row in whole]
        facts["sample_top_share"] = [_top_share(row.reshape(-1).tolist()) for row in whole]
        facts["sample_repeats"] = [_repeats(row.reshape(-1)) for row in whole]
    return facts


def _excerpt(values: Tensor, sample: int) -> dict[str, Any]:
    """Return the first values of one sample, and of how many."""
    row = values.reshape(-1)
    return {"sample": sample, "of": row.numel(), "values": row[:_EXCERPT].tolist()}


def _top_share(tokens: list[int]) -> float:
    """Share of the most frequent token of a sample: near 1 in a sequence of one token."""
    return Counter(tokens).most_common(1)[0][1] / len(tokens) if tokens else 0.0


#: Longest n-gram whose repetition is counted (OLMo 2 looks for 1 to 13 tokens).
_NGRAM = 13


def _repeats(tokens: Tensor) -> int:
    """Return how often, at most, one n-gram of 1 to 13 tokens follows upon itself without a break."""
    most = 1
    for period in range(1, min(_NGRAM, tokens.numel() // 2) + 1):
        breaks = (tokens[period:] != tokens[:-period]).nonzero().reshape(-1)
        edges = torch.cat([breaks.new_tensor([-1]), breaks, breaks.new_tensor([tokens.numel() - period])])
        longest = int(edges.diff().max()) - 1
        most = max(most, longest // period + 1)
    return most


def optimizer_facts(run: TrainingRun) -> dict[str, Any]:
    """Return the optimizer's class, each group's plain hyper-parameters, and what its state is kept in."""
    groups = []
    names = {id(p): n for n, p in run.parameters().items()}
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            own = [names[id(p)] for p in group["params"] if id(p) in names]
            plain = {k: _plain(v) for k, v in group.items() if k != "params"}
            head = {"parameters": len(group["params"]), "module": _common(own)}
            groups.append({**head, **{k: v for k, v in plain.items() if v is not None}})
    for group, rate in zip(groups, run.left_rates, strict=False):
        group["left_lr"] = rate
    states = [s for optimizer in run.optimizers for s in optimizer.state.values() if isinstance(s, dict)]
    steps = sorted({float(s["step"]) for s in states if "step" in s})
    moments = {dtype_name(v) for s in states for k, v in s.items() if isinstance(v, Tensor) and k != "step"}
    return {
        "class": type(run.optimizer).__name__,
        "optimizers": [type(o).__name__ for o in run.optimizers],
        "groups": groups,
        "state_dtypes": sorted(moments),
        "weight_dtypes": sorted({dtype_name(p) for p in run.trainable()}),
        "state_steps": steps[:4],
        "with_state": len(states),
        "trainable": len(run.trainable()),
        **_held(run),
        "embeddings": _embeddings(run),
        "autocast": run.autocast,
        "scaler": bool(run.scalers),
        "clip_grad_norm": run.clip_grad_norm,
        "clip_grad_value": run.clip_grad_value,
        "clip_param_norm": run.clip_param_norm,
        "agc": run.agc,
        "custom_step": run.train_step is not None,
    }


def _held(run: TrainingRun) -> dict[str, int]:
    """Count the parameters of the user's modules, and those of them that an optimizer holds."""
    ours = {id(p) for module in run.roots().values() for p in module.parameters()}
    return {"parameters": len(ours), "held": len(ours & set(map(id, run.trainable())))}


def _common(names: list[str]) -> str:
    """Return the innermost module that holds all of these parameters; '' where it is the root."""
    parts = [name.split(".")[:-1] for name in names]
    same = takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return ".".join(level[0] for level in same)


def _embeddings(run: TrainingRun) -> list[str]:
    """Return the names of the weights of nn.Embedding and nn.EmbeddingBag."""
    tables = {id(m.weight) for _, m in modules_below(run.roots()) if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    return [name for name, parameter in run.parameters().items() if id(parameter) in tables]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value):
        return list(value)
    return None


def poison_facts(run: TrainingRun) -> list[dict[str, Any]]:
    """Return what is non-finite in weights, buffers and optimizer state as they were loaded."""
    found = []
    for name, parameter in run.parameters().items():
        found += _poison("parameter", name, parameter.detach())
        for key, value in run.state_of(parameter).items():
            if isinstance(value, Tensor) and key != "step":
                found += _poison("state", f"{name}.{key}", value)
    for name, buffer in run.buffers().items():
        found += _poison("buffer", name, buffer)
    return found


def _poison(where: str, name: str, tensor: Tensor) -> list[dict[str, Any]]:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_sparse:
        return []
    stats = summarize(tensor, histogram=False)
    if stats.is_finite:
        return []
    module, leaf = split_name(name)
    counts = {"nan": stats.nan, "posinf": stats.posinf, "neginf": stats.neginf, "numel": stats.numel}
    bad = (~torch.isfinite(torch.view_as_real(tensor) if tensor.is_complex() else tensor)).nonzero()[:4].tolist()
    return [{"where": where, "module": module, "name": leaf, **counts, "coordinates": bad}]

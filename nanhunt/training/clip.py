"""The gradients' norm, and the four clips that a run can be configured with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nanhunt.training.run import TrainingRun
from nanhunt.training.shards import is_spread, own_part, total_norm

__all__ = ["clip_gradients", "gradient_norm"]

#: gets parameters, and the norm of each one's gradient
Told = Callable[[Sequence[Tensor], Sequence[Tensor]], None]


def clip_gradients(run: TrainingRun, told: Told | None = None) -> tuple[Tensor, Tensor | None]:
    """Clip as the run is configured; return the gradients' norm before it, and the factor of a clip by global norm.

    The clip is torch's own, with torch's own dtype and its default of going on when the norm is not finite: an inf
    norm makes the factor 0 and the inf elements NaN, a NaN norm makes everything NaN. The norm that is returned is
    the Euclidean one, whatever the clip's, taken in fp32, where an fp16 norm would overflow by itself; `told` gets what it is made of.
    """
    parameters = [p for group in run.optimizer.param_groups for p in group["params"] if p.grad is not None]
    if len(run.optimizer.param_groups) > 1:
        # in the model's order, as loops clip model.parameters(): a norm of norms in another order ends in another bit
        place = {id(p): number for number, p in enumerate(run.model.parameters())}
        parameters.sort(key=lambda p: place.get(id(p), len(place)))
    grads = [p.grad for p in parameters if p.grad is not None]
    norms = _norms(grads)
    norm = total_norm(list(zip(grads, norms, strict=True)), run.device)
    if told is not None:
        told(parameters, norms)
    if run.clip_grad_norm is not None and parameters:
        # torch's fused way takes no DTensors beside plain tensors
        foreach = False if len({is_spread(g) for g in grads}) == 2 else run.clip_foreach
        seen = torch.nn.utils.clip_grad_norm_(parameters, run.clip_grad_norm, run.clip_norm_type, foreach=foreach)
        seen = seen.full_tensor() if is_spread(seen) else seen  # type: ignore[attr-defined]
        return norm, torch.clamp(run.clip_grad_norm / (seen.float() + 1e-6), max=1.0)
    if run.clip_param_norm is not None:
        for parameter in parameters:
            torch.nn.utils.clip_grad_norm_(parameter, run.clip_param_norm, run.clip_norm_type, foreach=run.clip_foreach)
    if run.clip_grad_value is not None:
        torch.nn.utils.clip_grad_value_(parameters, run.clip_grad_value)
    if run.agc is not None:
        _clip_adaptively(parameters, run.agc)
    return norm, None


def gradient_norm(grads: list[Tensor], device: torch.device) -> Tensor:
    """Return the Euclidean norm of all gradients in fp32 (fp64 where any is fp64), on the device."""
    return total_norm(list(zip(grads, _norms(grads), strict=True)), device)


def _norms(grads: list[Tensor]) -> list[Tensor]:
    """Return the norm of each, of one that is spread over ranks the norm of this rank's part."""
    grads = [own_part(g) for g in grads]
    dense = [g.coalesce().values() if g.is_sparse else g for g in grads]
    dense = [torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in dense]
    wide = torch.float64 if any(g.dtype == torch.float64 for g in dense) else torch.float32
    return [torch.linalg.vector_norm(g, dtype=wide) for g in dense]


def _clip_adaptively(parameters: list[Tensor], factor: float, floor: float = 1e-3) -> None:
    """Clip each unit's gradient to `factor` × its weight's norm (AGC; Brock et al., 2021, arXiv 2102.06171)."""
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        dims = tuple(range(1, parameter.dim())) or None
        keep = parameter.dim() > 1
        weight_norm = torch.linalg.vector_norm(parameter.detach(), dim=dims, keepdim=keep).clamp(min=floor)
        grad_norm = torch.linalg.vector_norm(grad, dim=dims, keepdim=keep)
        limit = factor * weight_norm
        grad.copy_(torch.where(grad_norm > limit, grad * (limit / grad_norm.clamp(min=1e-6)), grad))

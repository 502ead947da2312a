"""Jacobians that a density lacks, found by derivatives."""

__all__ = ["wrong_jacobians"]

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Transform, TransformedDistribution

from tarspyro.infer.traces import (
    Site,
    drawn_of,
    elements_of,
    innermost,
    is_delta,
    only,
    sample_sites,
    with_values,
)
from tarspyro.types import Program

# Above this many numbers the derivatives would take too long.
_MOST = 400
# The difference, in nats for each number, above which a Jacobian is wrong.
_TOLERANCE = 0.01


def wrong_jacobians(
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    guide_trace: Trace,
    model_trace: Trace,
) -> list[str]:
    """Returns a sentence for each Jacobian that a density lacks.

    There are two places for one: the ``log_density`` of a ``Delta`` that is a function of an
    auxiliary draw, and the ``log_abs_det_jacobian`` of a transform.
    """
    found = []
    halves = (("model", model_trace), ("guide", guide_trace))
    with torch.enable_grad():
        for half, trace in halves:
            for name, site in sample_sites(trace):
                for transform in _wrong_transforms(site):
                    found.append(
                        f"The density of {name!r} in the {half} is wrong:"
                        f" {type(transform).__name__}.log_abs_det_jacobian is not the"
                        " logarithm of its derivative."
                    )
        found += _wrong_deltas(guide, args, kwargs, guide_trace, model_trace)
    return found


def _wrong_transforms(site: Site) -> list[Transform]:
    distribution = innermost(site["fn"])
    if not isinstance(distribution, TransformedDistribution):
        return []
    found = []
    try:
        x = distribution.base_dist.sample().detach()
        for transform in distribution.transforms:
            x = x.detach().clone().requires_grad_()
            y = transform(x)
            if y.shape == x.shape and _is_wrong(transform, x, y):
                found.append(transform)
            x = y
    except (RuntimeError, NotImplementedError, ValueError):
        return found  # Some transforms go only the other way, or have no derivative.
    return found


def _is_wrong(transform: Transform, x: Tensor, y: Tensor) -> bool:
    stated = transform.log_abs_det_jacobian(x, y)
    event_dim = transform.domain.event_dim
    if event_dim == 0:
        (slope,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        right = slope.abs().log()
        size = 1
    elif event_dim == 1 and x.shape[-1] <= _MOST:
        rows = [
            torch.autograd.grad(y[..., place].sum(), x, retain_graph=True)[0]
            for place in range(y.shape[-1])
        ]
        right = torch.linalg.slogdet(torch.stack(rows, -2)).logabsdet
        size = x.shape[-1]
    else:
        return False
    known = right.isfinite() & stated.isfinite()
    difference = torch.where(known, (right - stated).abs() / size, 0.0)
    slack = _TOLERANCE * (1 + torch.where(known, right.abs() / size, 0.0))
    # Rounding and saturation spoil single rows; a formula that is wrong is so in most of them.
    return bool((difference > slack).double().mean() > 0.5)


def _wrong_deltas(
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    guide_trace: Trace,
    model_trace: Trace,
) -> list[str]:
    """Compares the log density of ``Delta``s with the volume of their functions."""
    drawn = drawn_of(sample_sites(guide_trace))
    modelled = dict(sample_sites(model_trace))
    auxiliary = [
        name
        for name, site in drawn.items()
        if name not in modelled and not is_delta(site) and site["value"].is_floating_point()
    ]
    if not auxiliary:
        return []
    leaves = {
        name: drawn[name]["value"].detach().clone().requires_grad_() for name in auxiliary
    }
    chosen = only(guide_trace, lambda site: site["name"] in drawn and not is_delta(site))
    given = with_values(chosen, {name: leaf.clone() for name, leaf in leaves.items()})
    again = poutine.trace(poutine.replay(guide, trace=given)).get_trace(*args, **kwargs)
    deltas = {
        name: site
        for name, site in sample_sites(again)
        if name in modelled and is_delta(site) and site["value"].requires_grad
    }
    inputs = list(leaves.values())
    outputs = [site["value"] for site in deltas.values()]
    volume = _log_volume(inputs, outputs) if outputs else None
    if volume is None:
        return []
    stated = float(sum(_log_density(site) for site in deltas.values()))
    count = sum(output.numel() for output in outputs)
    if abs(stated + volume) / count <= _TOLERANCE * (1 + abs(volume) / count):
        return []
    return [
        f"The guide computes {sorted(deltas)} from {auxiliary} and leaves out the Jacobian: give"
        f" Delta a log_density of minus the log volume, {-volume:.2f} in all, in place of"
        f" {stated:.2f}."
    ]


def _log_density(site: Site) -> float:
    distribution = elements_of(site["fn"])
    assert isinstance(distribution, Delta)
    density: Any = distribution.log_density
    value = torch.as_tensor(density).expand(distribution.batch_shape)
    return float(value.detach().sum())


def _log_volume(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float | None:
    """Returns log |det| of the derivative of all outputs in all inputs; None if unknown."""
    if sum(one.numel() for one in inputs) != sum(one.numel() for one in outputs):
        return None

    def pulled(weights: Sequence[Tensor]) -> Tensor:
        found = torch.autograd.grad(
            outputs, inputs, list(weights), retain_graph=True, allow_unused=True
        )
        parts = []
        for value, leaf in zip(found, inputs, strict=True):
            parts.append((torch.zeros_like(leaf) if value is None else value).reshape(-1))
        return torch.cat(parts)

    ones = [torch.ones_like(output) for output in outputs]
    diagonal = pulled(ones)
    signs = [
        torch.randint(2, output.shape, device=output.device) * 2.0 - 1 for output in outputs
    ]
    flat = torch.cat([sign.reshape(-1) for sign in signs]).to(diagonal.dtype)
    mixed = pulled(
        [sign.to(output.dtype) for sign, output in zip(signs, outputs, strict=True)]
    )
    if torch.allclose(mixed, flat * diagonal, rtol=1e-4, atol=1e-6):
        return float(diagonal.abs().log().sum())
    if len(diagonal) > _MOST:
        return None
    rows = []
    for place in range(len(diagonal)):
        unit = torch.zeros_like(diagonal)
        unit[place] = 1.0
        split = unit.split([output.numel() for output in outputs])
        rows.append(
            pulled([part.reshape(out.shape) for part, out in zip(split, outputs, strict=True)])
        )
    return float(torch.linalg.slogdet(torch.stack(rows)).logabsdet)

"""Gradient estimators of weighted bounds: pathwise, in chunks, and doubly reparameterized.

Each returns a bound, averaged over its groups of particles and summed over the data, whose
gradient is the estimate.
"""

__all__ = [
    "WeightFunctions",
    "chain_rule",
    "doubly_reparameterized",
    "in_chunks",
    "pathwise",
    "scale_gradient",
]

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from pyro import poutine
from torch import Tensor

from tarspyro.infer.gradients import leaves_of, with_gradients
from tarspyro.infer.structure import Structure
from tarspyro.infer.summation import run_model
from tarspyro.infer.traces import reparameterized, rerun, sum_of, views_of, with_values
from tarspyro.infer.weights import (
    PointWeights,
    Weights,
    in_plates,
    joined,
    weigh,
    weigh_in_chunks,
)
from tarspyro.scopes import get_rng_states, set_rng_states
from tarspyro.types import Program


class WeightFunctions(Protocol):
    """A weighted bound, for its gradient estimators: functions of the log weights of a group.

    ``WeightedBound`` describes them.
    """

    num_particles: int
    num_groups: int

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the bound of each data point, for each group."""
        ...

    def without_each(self, log_weights: Tensor) -> Tensor:
        """Returns the bound without each particle."""
        ...

    def derivative(self, log_weights: Tensor) -> Tensor:
        """Returns the bound's derivative in each log weight."""
        ...

    def damping(self, derivative: Tensor) -> Tensor:
        """Returns the factor of the doubly reparameterized gradient of each draw."""
        ...


def pathwise(functions: WeightFunctions, weights: Weights) -> Tensor:
    """Returns the bound, with its gradient through the weights and the draws.

    Draws that are not, or only in part, reparameterized add their score function, times the
    bound minus the bound without the particle.
    """
    values = []
    surrogates = []
    for group in weights.groups:
        if group.score is None:
            value = functions.bound(group.log_weights)
        else:
            value, surrogate = _with_score(functions, group, group.score)
            surrogates.append(surrogate)
        values.append((group.scale * value).sum(-1))
    if weights.shared is not None:
        values.append(weights.shared.log_weights)
    total = sum_of(values)
    if weights.shared is not None and weights.shared.score is not None:
        surrogates.append(_signal_of_groups(total) * weights.shared.score)
    for surrogate in surrogates:
        total = total + (surrogate - surrogate.detach())
    return total.mean()


def _with_score(
    functions: WeightFunctions, group: PointWeights, score: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the bound of each data point, and a number with the score-function gradient."""
    log_weights = group.log_weights
    # Draws without a derivative may all have the weight zero. Their bound is -inf, and has no
    # gradient to follow.
    lost = log_weights.isneginf().all(1)
    finite = functions.bound(log_weights.masked_fill(lost.unsqueeze(1), 0.0))
    signal = finite.unsqueeze(1) - functions.without_each(log_weights)
    surrogate = (group.scale * signal.detach() * score).sum((1, 2))
    return finite.masked_fill(lost, -math.inf), surrogate


def _signal_of_groups(total: Tensor) -> Tensor:
    """Returns the bound of each group minus the mean of the others."""
    signal = total.detach()
    if len(signal) == 1:
        return signal
    return signal - (signal.sum() - signal) / (len(signal) - 1)


def in_chunks(
    functions: WeightFunctions,
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    chunk_size: int,
    structure: Structure,
) -> Tensor:
    """Returns the bound, with its pathwise gradient, from ``chunk_size`` particles at a time.

    A first run without gradients computes all weights. A second run on the same noise computes
    the gradient of each chunk and then drops its graph, so that memory does not grow with the
    number of particles.
    """

    def chunks() -> Iterator[Weights]:
        groups = functions.num_groups
        particles = functions.num_particles
        return weigh_in_chunks(
            model, guide, args, kwargs, groups, particles, chunk_size, structure
        )

    states = get_rng_states()
    with torch.no_grad():
        weights = joined(list(chunks()))
        value = pathwise(functions, weights)
    if not torch.is_grad_enabled():
        return value

    derivatives = []
    signals = []
    for group in weights.groups:
        log_weights = group.log_weights
        derivatives.append(group.scale * functions.derivative(log_weights))
        signal = None
        if group.score is not None:
            bound = functions.bound(log_weights).unsqueeze(1)
            signal = group.scale * (bound - functions.without_each(log_weights))
        signals.append(signal)

    set_rng_states(states)
    parameters: dict[int, Tensor] = {}
    gradients: dict[int, Tensor] = {}
    position = 0
    for chunk in chunks():
        part = slice(position, position + chunk.groups[0].log_joint.shape[1])
        position = part.stop
        terms = []
        for group, derivative, signal in zip(chunk.groups, derivatives, signals, strict=True):
            terms.append((derivative[:, part] * group.log_weights).sum())
            if group.score is not None and signal is not None:
                terms.append((signal[:, part] * group.score).sum())
        surrogate = sum_of(terms)
        leaves = leaves_of(surrogate)
        for leaf, gradient in zip(leaves, torch.autograd.grad(surrogate, leaves), strict=True):
            key = id(leaf)
            parameters[key] = leaf
            mean = gradient / functions.num_groups
            gradients[key] = gradients[key] + mean if key in gradients else mean
    return with_gradients(value, list(parameters.values()), list(gradients.values()))


def doubly_reparameterized(
    functions: WeightFunctions,
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    structure: Structure,
) -> Tensor:
    r"""Returns the bound, with the model's usual gradient and the guide's through the draws
    alone.

    .. math:: \nabla_\phi \mathcal{L} = \mathbb{E}\Big[ \sum_k d_k \,
              \frac{\partial \mathcal{L}}{\partial \log w_k} \,
              \frac{\partial \log w_k}{\partial z_k} \frac{d z_k}{d \phi} \Big]

    with the damping :math:`d_k`. A partial derivative is taken in one draw, with the other draws
    and all parameters fixed. The derivative of log p comes back through views of the draws, which
    damp it. The derivative of log q comes from detached copies of the draws. The first run has
    the derivatives of the draws in each other and in the parameters.
    """
    groups = functions.num_groups
    particles = functions.num_particles
    in_plate, guide_in_plate = in_plates(model, guide, groups, particles, structure)
    drawn = poutine.trace(guide_in_plate).get_trace(*args, **kwargs)
    sites = reparameterized(drawn, "gradient='dreg'")
    views = views_of(sites)
    copies = {name: site["value"].detach().requires_grad_() for name, site in sites.items()}
    given = with_values(drawn, views)
    model_trace = run_model(in_plate, given, args, kwargs, structure)
    guide_trace = rerun(guide_in_plate, drawn, copies, args, kwargs)
    weights = weigh(model, model_trace, guide_trace, structure)

    values = []
    joint = []
    divergence = []
    for group in weights.groups:
        log_weights = group.log_weights.detach()
        derivative = functions.derivative(log_weights)
        values.append((group.scale * functions.bound(log_weights)).sum(-1).mean())
        joint.append((group.scale * derivative * group.log_joint).sum())
        divergence.append(-(group.scale * derivative * group.log_guide).sum())
        damping = functions.damping(derivative)
        for name in group.latent:
            scale_gradient(views[name], group.spread(damping, sites[name]))
    if weights.shared is not None:
        # All particles share these draws, so the bound's derivative in them is not damped.
        values.append(weights.shared.log_weights.detach().mean())
        joint.append(weights.shared.log_joint.sum())
        divergence.append(-weights.shared.log_guide.sum())

    surrogate = sum_of(joint) + chain_rule(sum_of(divergence), copies, views)
    surrogate = surrogate / functions.num_groups
    return sum_of(values) + (surrogate - surrogate.detach())


def scale_gradient(view: Tensor, factor: Tensor | float) -> None:
    """Multiplies the gradient that comes back through a view of a draw."""
    if view.requires_grad:
        view.register_hook(lambda gradient: gradient * factor)


def chain_rule(
    objective: Tensor, ends: Mapping[str, Tensor], draws: Mapping[str, Tensor]
) -> Tensor | float:
    """Returns a number with the objective's gradient through the draws.

    Arguments:
        objective: A number that depends on ``ends``.
        ends: A tensor for each draw, in which the objective's partial derivatives are taken.
        draws: The draws, through which the derivatives go on.
    """
    if not objective.requires_grad:
        return 0.0
    partial = torch.autograd.grad(
        objective, list(ends.values()), retain_graph=True, allow_unused=True
    )
    terms = []
    for draw, derivative in zip(draws.values(), partial, strict=True):
        if derivative is not None:
            # In a recorded graph the derivative has a gradient of its own.
            terms.append((draw * derivative.detach()).sum())
    return sum_of(terms) if terms else 0.0

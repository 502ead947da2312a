"""Bounds that are functions of several weights of each data point: their value and their
gradients.
"""

__all__ = ["WeightedBound", "chain_rule", "damp"]

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from tarspyro.arguments import as_count, check_choice
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.gradients import leaves_of, with_gradients
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import (
    PairError,
    name_of,
    reparameterized,
    rerun,
    trace_pair,
    views_of,
    with_values,
)
from tarspyro.infer.weights import (
    Weights,
    in_plates,
    joined,
    weigh,
    weigh_in_chunks,
    weigh_one_by_one,
)
from tarspyro.scopes import get_rng_states, set_rng_states
from tarspyro.types import Program


class WeightedBound(Bound):
    """A bound L(log w_1, ..., log w_K) of each data point, averaged over groups of K
    particles.

    Subclasses define ``bound``, ``without_each``, ``derivative`` and ``damping``; the shape of
    log weights is ``[groups, particles, data points]``.
    """

    whole = False

    def __init__(
        self,
        num_particles: int,
        num_groups: int,
        gradient: str,
        *,
        max_plate_nesting: int | float = math.inf,
        vectorize_particles: bool = True,
        chunk_size: int | None = None,
        retain_graph: bool | None = None,
    ) -> None:
        num_groups = as_count("num_groups", num_groups)
        chunk_size = None if chunk_size is None else as_count("chunk_size", chunk_size)
        if chunk_size is not None and (gradient != "pathwise" or not vectorize_particles):
            raise ValueError(
                "chunk_size is for gradient='pathwise' and vectorize_particles=True: leave it"
                " out."
            )
        if gradient == "stl":
            raise ValueError(
                "gradient='stl' is biased with several particles in a logarithm: take 'dreg'."
            )
        check_choice("gradient", gradient, ("pathwise", "dreg"))
        if gradient != "pathwise" and not vectorize_particles:
            raise ValueError(
                f"gradient={gradient!r} runs all particles at once: take"
                " vectorize_particles=True."
            )
        super().__init__(
            num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )
        self.num_groups, self.gradient, self.chunk_size = num_groups, gradient, chunk_size

    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound of each data point, for each group: shape ``[groups, data points]``."""
        raise NotImplementedError

    def without_each(self, log_weights: Tensor) -> Tensor:
        """The bound without each particle, the baseline of its score."""
        raise NotImplementedError

    def derivative(self, log_weights: Tensor) -> Tensor:
        """The bound's derivative in each log weight."""
        raise NotImplementedError

    def damping(self, derivative: Tensor) -> Tensor:
        """By how much the doubly reparameterized gradient of each draw is less than the
        pathwise one.
        """
        raise NotImplementedError

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the bound; there are no terms."""
        structure = self._structure(model, guide, args, kwargs)
        groups, particles = self.num_groups, self.num_particles
        # One particle's bound is its log weight, whatever the scales of its parts.
        scales = "inside" if particles == 1 else "common"
        if self.gradient == "dreg" and torch.is_grad_enabled():
            self._check_vectorized(model, structure, "gradient='dreg'")
            halves = in_plates(model, guide, groups, particles, structure)
            return -self._doubly_reparameterized(*halves, args, kwargs, structure), {}
        if self.chunk_size is not None:
            self._check_vectorized(model, structure, "chunk_size")
            return -self._in_chunks(model, guide, args, kwargs, structure), {}
        if structure.vectorized is False:
            weights = weigh_one_by_one(
                model, guide, args, kwargs, groups, particles, structure, scales=scales
            )
        else:
            halves = (model, guide)
            if groups * particles > 1:
                halves = in_plates(model, guide, groups, particles, structure)
            weights = weigh(
                model, *trace_pair(*halves, args, kwargs), structure, scales=scales
            )
        return -self._pathwise(weights), {}

    def _find(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Structure:
        structure = super()._find(model, guide, args, kwargs)
        if structure.enumerated:
            raise PairError(
                f"{name_of(model)} enumerates {sorted(structure.enumerated)}, which"
                f" {type(self).__name__} cannot sum out inside a logarithm: train with ELBO(),"
                " or draw them in the guide."
            )
        if structure.joint and structure.subsampled and self.num_particles > 1:
            warnings.warn(
                f"{name_of(model)} has one weight of all data, which a subsample only"
                f" estimates: {type(self).__name__} is then no bound on log p(x) (Li and"
                " Turner 2016, section 4.3), and ELBO() is one.",
                stacklevel=2,
            )
        return structure

    def _check_vectorized(self, model: Program, structure: Structure, wanted_by: str) -> None:
        if structure.vectorized is False:
            raise PairError(
                f"{wanted_by} runs all particles together, and {name_of(model)} cannot take"
                " them in a plate of their own: leave it out."
            )

    def _pathwise(self, weights: Weights) -> Tensor:
        """The bound, with its pathwise gradient and the score functions' where a draw needs
        them.
        """
        total: Any = 0.0
        surrogates = []
        for group in weights.groups:
            log_weights = group.log_weights
            if group.score is None:
                value = self.bound(log_weights)
            else:
                # Draws without a derivative may all have the weight zero; such a bound has no
                # direction to follow.
                lost = log_weights.isneginf().all(1)
                known = self.bound(log_weights.masked_fill(lost.unsqueeze(1), 0.0))
                value = known.masked_fill(lost, -math.inf)
            total = total + (group.scale * value).sum(-1)
            if group.score is not None:
                signal = known.unsqueeze(1) - self.without_each(log_weights)
                surrogates.append((group.scale * signal.detach() * group.score).sum((1, 2)))
        if weights.shared is not None:
            total = total + weights.shared.log_weights
            if weights.shared.score is not None:
                signal = total.detach()
                if len(signal) > 1:
                    signal = signal - (signal.sum() - signal) / (len(signal) - 1)
                surrogates.append(signal * weights.shared.score)
        for surrogate in surrogates:
            total = total + (surrogate - surrogate.detach())
        mean: Tensor = total.mean()
        return mean

    def _in_chunks(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        structure: Structure,
    ) -> Tensor:
        """The bound, and its pathwise gradient from a second run on the same noise that
        forgets every chunk.
        """

        def chunks() -> Iterator[Weights]:
            sizes = self.num_groups, self.num_particles, self.chunk_size or self.num_particles
            return weigh_in_chunks(model, guide, args, kwargs, *sizes, structure)

        states = get_rng_states()
        with torch.no_grad():
            weights = joined(list(chunks()))
            value = self._pathwise(weights)
        if not torch.is_grad_enabled():
            return value
        factors = []
        for group in weights.groups:
            log_weights = group.log_weights
            signal = self.bound(log_weights).unsqueeze(1) - self.without_each(log_weights)
            factors.append((group.scale * self.derivative(log_weights), group.scale * signal))
        set_rng_states(states)
        gradients: dict[int, tuple[Tensor, Tensor]] = {}
        position = 0
        for chunk in chunks():
            part = slice(position, position + chunk.groups[0].log_joint.shape[1])
            position = part.stop
            surrogate: Any = 0.0
            for group, (derivative, signal) in zip(chunk.groups, factors, strict=True):
                surrogate = surrogate + (derivative[:, part] * group.log_weights).sum()
                if group.score is not None:
                    surrogate = surrogate + (signal[:, part] * group.score).sum()
            parameters = leaves_of(surrogate)
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(surrogate, parameters), strict=True
            ):
                _, known = gradients.get(id(parameter), (parameter, 0.0))
                gradients[id(parameter)] = parameter, known + gradient / self.num_groups
        parameters = [parameter for parameter, _ in gradients.values()]
        return with_gradients(
            value, parameters, [gradient for _, gradient in gradients.values()]
        )

    def _doubly_reparameterized(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        structure: Structure,
    ) -> Tensor:
        r"""The bound, with the model's gradient as ever and the guide's through the draws
        alone.

        .. math:: \nabla_\phi \mathcal{L} = \mathbb{E}\Big[ \sum_k d_k \, \frac{\partial \mathcal{L}}{\partial \log w_k}
                  \, \frac{\partial \log w_k}{\partial z_k} \frac{d z_k}{d \phi} \Big]

        with the damping :math:`d_k`. The partial derivatives are each draw's own, with the
        other draws and all parameters fixed. That of log p comes back through views of the
        draws, which damp it; that of log q from copies that are cut off. The chain through the
        draws, one from another, is that of the first run.
        """
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        sites = reparameterized(drawn, "gradient='dreg'")
        views = views_of(sites)
        copies = {
            name: site["value"].detach().requires_grad_() for name, site in sites.items()
        }
        model_trace = poutine.trace(
            poutine.replay(model, trace=with_values(drawn, views))
        ).get_trace(*args, **kwargs)
        weights = weigh(
            model, model_trace, rerun(guide, drawn, copies, args, kwargs), structure
        )
        total: Any = 0.0
        joint: Any = 0.0
        divergence: Any = 0.0
        for group in weights.groups:
            log_weights = group.log_weights.detach()
            derivative = self.derivative(log_weights)
            total = total + (group.scale * self.bound(log_weights)).sum(-1).mean()
            joint = joint + (group.scale * derivative * group.log_joint).sum()
            divergence = divergence - (group.scale * derivative * group.log_guide).sum()
            for name in group.latent:
                damp(views[name], group.spread(self.damping(derivative), sites[name]))
        if weights.shared is not None:
            # What data points share is drawn once for all particles: its derivative is that of
            # the bound itself.
            total = total + weights.shared.log_weights.detach().mean()
            joint = joint + weights.shared.log_joint.sum()
            divergence = divergence - weights.shared.log_guide.sum()
        surrogate = (joint + chain_rule(divergence, copies, views)) / self.num_groups
        value: Tensor = total + (surrogate - surrogate.detach())
        return value


def damp(view: Tensor, factor: Tensor | float) -> None:
    """Multiplies the gradient that comes back through a view of a draw."""
    if view.requires_grad:
        view.register_hook(lambda gradient: gradient * factor)


def chain_rule(
    objective: Tensor, ends: Mapping[str, Tensor], draws: Mapping[str, Tensor]
) -> Any:
    """A number with the objective's gradient through the draws, by its partial derivatives at
    the ends.
    """
    if not objective.requires_grad:
        return 0.0
    partial = torch.autograd.grad(
        objective, list(ends.values()), retain_graph=True, allow_unused=True
    )
    # Cut off, for when the derivatives are themselves operations of a recorded graph.
    terms = zip(draws.values(), partial, strict=True)
    return sum((draw * one.detach()).sum() for draw, one in terms if one is not None)

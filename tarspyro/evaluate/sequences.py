"""Sequences: filtering, their log-likelihood by a particle filter, and how they may go on."""

__all__ = ["Filtered", "continuations", "particle_filter"]

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.arguments import as_count, format_value
from tarspyro.evaluate.batching import by_batch, rows_at_once
from tarspyro.infer.bounds.filtering import ParticleFilter, check_resampling
from tarspyro.infer.pairs import structure_of
from tarspyro.infer.traces import name_of
from tarspyro.types import Program


class Filtered(NamedTuple):
    """What a particle filter says of each sequence."""

    log_likelihood: Any
    mean: Any
    effective_sample_size: Any


def particle_filter(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 100,
    threshold: float = 0.5,
    resampling: str = "multinomial",
    site: str = "z",
    seed: int | None = None,
) -> Filtered:
    r"""Estimates the log-likelihood of each sequence, in nats, and the latent variables step
    by step.

    .. math:: \log p(x) \approx \log \hat p_K(x), \qquad
              \mathbb{E}[z_t \mid x_{0:t}] \approx \sum_k w_{tk} \, z_{tk} \Big/ \sum_k w_{tk}

    Like ``log_likelihood`` it is a lower bound in expectation that grows with K, and the
    estimate of p(x) is unbiased; for long sequences it is much the tighter one, whose weights
    do not degenerate. All particles are in memory at once, of as many sequences as fit.
    (Maddison et al. 2017, arXiv:1705.09279, section 3; see ``infer.FIVO``.)

    Arguments:
        model: The model, a ``sequential`` program.
        guide: The guide, likewise, which proposes. Where it looks ahead of t, the mean is one
            given all it has seen.
        x: The data, in any form that ``fit`` takes in memory, such as ``Sequences``.
        num_particles: K.
        threshold: The share of K below which the effective sample size has a sequence
            resampled.
        resampling: ``"multinomial"``, or ``"systematic"``, with less noise.
        site: The name of the latent variable before its step, ``"z"`` for ``z_0``, ``z_1``,
            ...
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        A tuple (log_likelihood, mean, effective_sample_size) of shapes ``(N,)``, ``(N, T,
        *event)`` and ``(N, T)``: arrays for arrays, tensors for tensors. From the end of a
        sequence on, the last two mean nothing.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If the pair is not sequential, or has no weights for each sequence.
        ValueError: If an argument is out of range, or the guide has no such site.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> between, out = (Conditional(dist.Normal, MLP(2, []), size, scale=0.5) for size in (2, 3))
        >>> p = models.DeepMarkovModel(default_prior(dist.Normal, 2), between, out)
        >>> q = guides.DeepMarkovModel(lambda x: p.prior(), lambda x, z: p.transition(z))  # a bootstrap filter
        >>> particle_filter(p, q, torch.zeros(5, 4, 3)).mean.shape
        torch.Size([5, 4, 2])
    """
    check_resampling(threshold, resampling)
    num_particles = as_count("num_particles", num_particles)

    def filtered(*arguments: Tensor) -> dict[str, Tensor]:
        means: list[Tensor] = []
        sizes: list[Tensor] = []
        run = _begin(model, guide, arguments, num_particles, threshold, resampling)

        def look(_: Trace, guide_trace: Trace) -> None:
            nodes: Any = guide_trace.nodes
            name = f"{site}_{len(means)}"
            if name not in nodes:
                return
            value, shares = nodes[name]["value"], torch.softmax(run.log_weights, 0)
            sizes.append(1 / shares.square().sum(0))
            means.append(
                (shares.reshape(shares.shape + (1,) * (value.dim() - 2)) * value).sum(0)
            )

        run.run(look)
        if not means:
            raise ValueError(
                f"site must name a latent variable of {name_of(guide)} before its step, got"
                f" {format_value(site)}."
            )
        return {
            "log_likelihood": run.log_likelihood,
            "mean": torch.stack(means, 1),
            "effective_sample_size": torch.stack(sizes, 1),
        }

    batch_size = rows_at_once(num_particles)
    return Filtered(
        **by_batch(filtered, model, guide, x, seed=seed, check=True, batch_size=batch_size)
    )


def continuations(
    model: Program,
    guide: Program,
    x: Any,
    length: int,
    *,
    num_samples: int = 1,
    num_particles: int = 100,
    site: str = "x",
    seed: int | None = None,
) -> Any:
    r"""Draws how sequences may go on.

    .. math:: x_{T:L} \sim p(x_{T:L} \mid x_{0:T})

    A particle filter runs over what is known; from particles drawn in proportion to their
    weights the model goes on.

    Arguments:
        model: The model, a ``sequential`` program that generates with ``length``.
        guide: The guide, likewise.
        x: The beginnings of shape ``(N, T, *event)``, all of one length.
        length: L, the number of steps with those that are known.
        num_samples: How many continuations of each sequence.
        num_particles: The number of particles of the filter, at least as many.
        site: The name of the observation before its step, ``"x"`` for ``x_0``, ``x_1``, ...
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        The steps T to L - 1, of shape ``(num_samples, N, L - T, *event)``: an array for
        arrays, a tensor for tensors.

    Raises:
        PairError: If the pair is not sequential.
        ValueError: If ``length`` is none beyond x, or there are fewer particles than samples.
    """
    if as_count("num_samples", num_samples) > as_count("num_particles", num_particles):
        raise ValueError(
            f"num_particles must be at least num_samples, {num_samples}, got {num_particles}."
        )

    def drawn(x: Tensor, *others: Tensor) -> Tensor:
        if others:
            raise ValueError(
                "x must be the beginnings alone, all of one length: leave out lengths."
            )
        if as_count("length", length) <= x.shape[1]:
            raise ValueError(
                f"length must be above {x.shape[1]}, the steps that are known, got {length}."
            )
        run = _begin(model, guide, (x,), num_particles, 0.5, "multinomial", {"length": length})
        run.run()
        run.resample(everywhere=True)
        steps: list[Tensor] = []
        while not run.model.finished:
            nodes: Any = run.continuation().nodes
            steps.append(nodes[f"{site}_{x.shape[1] + len(steps)}"]["value"][:num_samples])
        return torch.stack(steps, 2).movedim(1, 0)

    result = by_batch(
        drawn, model, guide, x, seed=seed, batch_size=rows_at_once(num_particles)
    )
    return result.swapaxes(0, 1)


def _begin(
    model: Program,
    guide: Program,
    arguments: tuple[Tensor, ...],
    num_particles: int,
    threshold: float,
    resampling: str,
    model_kwargs: Mapping[str, Any] | None = None,
) -> ParticleFilter:
    structure = structure_of(model, guide, arguments, {})
    return ParticleFilter(
        model,
        guide,
        arguments,
        {},
        num_particles,
        threshold,
        resampling,
        structure,
        model_kwargs,
    )

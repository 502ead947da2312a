"""Particle filters for sequences: log-likelihoods, latent means, continuations."""

__all__ = ["Filtered", "continuations", "particle_filter"]

from typing import NamedTuple

import torch
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.arguments import as_count, format_fields, format_value
from tarspyro.evaluate.batching import (
    Array,
    StructureByShape,
    ValuesByStructure,
    map_batches,
    rows_at_once,
)
from tarspyro.evaluate.sampling import parameters_of
from tarspyro.infer.bounds.filtering import ParticleFilter, check_resampling
from tarspyro.infer.pairs import structure_of
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import name_of
from tarspyro.types import Argument, Arguments, Data, Program


class Filtered(NamedTuple):
    """The estimates of a particle filter for each sequence."""

    log_likelihood: Array
    mean: Array
    effective_sample_size: Array

    def __repr__(self) -> str:
        return format_fields("Filtered", self._asdict())


def particle_filter(
    model: Program,
    guide: Program,
    x: Data,
    *,
    num_particles: int = 100,
    threshold: float = 0.5,
    resampling: str = "multinomial",
    site: str = "z",
    seed: int | None = None,
    compile: bool = False,
) -> Filtered:
    r"""Estimates the log-likelihood of each sequence and the mean of each latent variable.

    .. math:: \log p(x) \approx \log \hat p_K(x), \qquad
              \mathbb{E}[z_t \mid x_{0:t}] \approx \sum_k w_{tk} \, z_{tk} \Big/ \sum_k w_{tk}

    In nats. As with ``log_likelihood``, the estimate of p(x) is unbiased, and its logarithm is
    a lower bound in expectation that grows with K. For long sequences it is much tighter,
    because resampling keeps the weights from degenerating. All particles are in memory at
    once, of as many sequences as fit. (Maddison et al. 2017, arXiv:1705.09279, section 3; see
    ``infer.FIVO``.)

    Arguments:
        model: The model, a ``sequential`` program.
        guide: The guide, likewise, whose draws are the proposals. If it looks ahead of t, the
            mean is conditioned on all that it has seen.
        x: The data, in any form that ``fit`` takes, such as ``Sequences``.
        num_particles: K.
        threshold: The share of K below which the effective sample size triggers resampling.
        resampling: ``"multinomial"``, or ``"systematic"``, with less noise.
        site: The name of the latent variable without its step: ``"z"`` for ``z_0``, ``z_1``.
        seed: The seed of the draws; the global random state then stays unchanged.
        compile: Whether to compile the filter, as ``fit(compile=True)`` does with steps of
            training. It takes some seconds to a minute for each shape of a batch, more for long
            sequences, and may draw from another stream of random numbers. It pays for dozens of
            batches of equal shape, of which the first five run as written.

    Returns:
        A tuple (log_likelihood, mean, effective_sample_size) of shapes ``(N,)``, ``(N, T,
        *event)`` and ``(N, T)``: arrays for arrays, tensors for tensors. After the end of a
        sequence, ignore the last two.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If the pair is not sequential, or if sequences have no weights of their own.
        ValueError: If an argument is out of range, or if the guide has no such site.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> transition = Conditional(dist.Normal, MLP(2, []), 2, scale=0.5)
        >>> likelihood = Conditional(dist.Normal, MLP(2, []), 3, scale=0.5)
        >>> p = models.DeepMarkovModel(default_prior(dist.Normal, 2), transition, likelihood)
        >>> # The bootstrap filter: proposals are the model's own transitions.
        >>> q = guides.DeepMarkovModel(lambda x: p.prior(), lambda x, z: p.transition(z))
        >>> particle_filter(p, q, torch.zeros(5, 4, 3)).mean.shape
        torch.Size([5, 4, 2])
    """
    check_resampling(threshold, resampling)
    num_particles = as_count("num_particles", num_particles)
    structure_of_batch = StructureByShape(model, guide, num_particles)

    def filtered(structure: Structure, *batch: Argument) -> dict[str, Tensor]:
        means: list[Tensor] = []
        sizes: list[Tensor] = []
        run = ParticleFilter(
            model,
            guide,
            batch,
            {},
            num_particles,
            threshold,
            resampling,
            structure,
        )

        def record(_: Trace, guide_trace: Trace) -> None:
            name = f"{site}_{len(means)}"
            if name not in guide_trace.nodes:
                return
            value = torch.as_tensor(guide_trace.nodes[name]["value"])
            weights = torch.softmax(run.log_weights, 0)
            sizes.append(1 / weights.square().sum(0))
            columns = weights.reshape(weights.shape + (1,) * (value.dim() - 2))
            means.append((columns * value).sum(0))

        run.run(record)
        if not means:
            raise ValueError(
                f"site must name a latent variable of {name_of(guide)} without its step, such"
                f" as 'z' for z_0, z_1, got {format_value(site)}."
            )
        return {
            "log_likelihood": run.log_likelihood,
            "mean": torch.stack(means, 1),
            "effective_sample_size": torch.stack(sizes, 1),
        }

    values = ValuesByStructure(filtered, (model, guide), compile)
    return map_batches(
        lambda *batch: Filtered(**values(batch, structure_of_batch(batch))),
        (model, guide),
        x,
        seed=seed,
        check=True,
        batch_size=rows_at_once(num_particles),
    )


def continuations(
    model: Program,
    guide: Program,
    x: Data,
    length: int,
    *,
    num_samples: int = 1,
    num_particles: int = 100,
    site: str = "x",
    seed: int | None = None,
) -> Array:
    r"""Draws continuations of sequences.

    .. math:: x_{T:L} \sim p(x_{T:L} \mid x_{0:T})

    A particle filter runs over the beginnings. The model then continues from particles, drawn
    in proportion to their weights.

    Arguments:
        model: The model, a ``sequential`` program that generates with ``length``.
        guide: The guide, likewise.
        x: The beginnings of shape ``(N, T, *event)``, all of one length, in any form that
            ``fit`` takes. Further parts, such as controls, are given to both programs as they
            are: those of the continued steps, too, belong to them.
        length: L, the number of steps of the whole sequence.
        num_samples: The number of continuations of each sequence.
        num_particles: The number of particles of the filter, at least ``num_samples``.
        site: The name of the observation without its step: ``"x"`` for ``x_0``, ``x_1``.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        The steps T to L - 1, of shape ``(num_samples, N, L - T, *event)``: an array for
        arrays, a tensor for tensors.

    Raises:
        PairError: If the pair is not sequential.
        ValueError: If ``length`` is not above T, if there are fewer particles than samples, or
            if x has ``lengths``.
    """
    num_samples = as_count("num_samples", num_samples)
    num_particles = as_count("num_particles", num_particles)
    length = as_count("length", length)
    if num_samples > num_particles:
        raise ValueError(
            f"num_particles must be at least num_samples, {num_samples}, got {num_particles}."
        )

    def drawn(*batch: Argument) -> Array:
        known = _steps_of(model, batch)
        if length <= known:
            raise ValueError(
                f"length must be above {known}, the steps that are known, got {length}."
            )
        run = ParticleFilter(
            model,
            guide,
            batch,
            {},
            num_particles,
            0.5,
            "multinomial",
            structure_of(model, guide, batch, {}, particles=num_particles),
            {"length": length},
        )
        run.run()
        run.resample(everywhere=True)
        steps: list[Tensor] = []
        while not run.model.finished:
            node = run.continuation().nodes[f"{site}_{known + len(steps)}"]
            steps.append(torch.as_tensor(node["value"])[:num_samples])
        return torch.stack(steps, 2).movedim(1, 0)

    result = map_batches(
        drawn, (model, guide), x, seed=seed, batch_size=rows_at_once(num_particles)
    )
    return result.swapaxes(0, 1)


def _steps_of(model: Program, batch: Arguments) -> int:
    """Returns the number of steps of some beginnings.

    Raises:
        ValueError: If they have lengths.
    """
    parts = dict(zip(parameters_of(model), batch, strict=False))
    if parts.get("lengths") is not None:
        raise ValueError(
            "x must be beginnings that are all of one length, got lengths: leave out lengths, and"
            " continue those of each length by themselves."
        )
    (x, *_) = batch
    if x is None or x.dim() < 2:
        raise ValueError(
            f"x must be beginnings of shape (N, T, *event), got"
            f" {'None' if x is None else tuple(x.shape)}."
        )
    return x.shape[1]

"""The structure of a pair, confirmed by trial runs, and the log weights of its data points."""

__all__ = [
    "FIX_OF_MASKS",
    "about_masks",
    "by_point",
    "check_drawn",
    "check_local",
    "check_vectorized",
    "log_weights",
    "structure_of",
]

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from tarspyro.infer.structure import SHARED, Structure, read_structure
from tarspyro.infer.summation import trace_summed
from tarspyro.infer.traces import (
    PairError,
    Site,
    drawn_of,
    guide_terms,
    name_of,
    only,
    sample_sites,
    sum_of,
    with_values,
)
from tarspyro.infer.weights import Weights, draw_weights, in_plates, weigh
from tarspyro.programs import PROGRAM_ERRORS
from tarspyro.scopes import (
    evaluating,
    get_rng_states,
    kept_buffers,
    preserved_rng,
    set_rng_states,
)
from tarspyro.types import Program

FIX_OF_MASKS = (
    "mask it in both alike, poutine.mask(mask=...); what obs_mask leaves unobserved has the mask"
    " ~obs_mask"
)


def structure_of(
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    particles: int = 1,
    groups: int = 1,
    vectorize: bool = True,
    whole: bool = False,
    observed: bool = False,
) -> Structure:
    """Finds the structure of a pair by a few runs; random state and statistics stay as they are.

    With several particles, the structure is confirmed by the draws of two runs:

    - A run that takes the draws of some data points from the first run, and the others from
      the second, must give each data point the weight of its own draws, and the derivatives
      must agree. Otherwise data points depend on each other, and there is one weight of all
      data.
    - A run of both together, in a plate of particles, must give each the weights that it has
      alone. Otherwise the programs cannot take such a plate. They run in evaluation mode for
      that, and once more in training mode, where such a run may fail too.

    Arguments:
        model: The model.
        guide: The guide.
        args: The arguments that both are called with.
        kwargs: The keyword arguments that both are called with.
        particles: How many particles the pair will run with.
        groups: How many groups of them.
        vectorize: Whether the particles shall run together.
        whole: Whether only the sum over all data is needed.
        observed: Whether the model has to observe something.

    Raises:
        PairError: If the sites of model and guide do not match.
    """
    with preserved_rng():
        structure, *traces = read_structure(model, guide, args, kwargs, observed=observed)
        if particles * groups == 1:
            return structure
        training = any(getattr(program, "training", False) for program in (model, guide))
        with evaluating(model, guide):
            if training or structure.enumerated:
                # In training mode, noise and statistics of the batch would tie data points
                # together.
                traces = list(trace_summed(model, guide, args, kwargs, structure))
            tried = structure.whole if whole else structure
            trial = _Trial(model, guide, args, kwargs, tried, traces[0], traces[1])
            if not tried.joint and not trial.data_points_are_independent():
                structure = structure.whole
                trial.structure = structure
            together = vectorize and trial.takes_a_plate(min(groups, 2))
        if together and training:
            with kept_buffers(model, guide), torch.no_grad():
                together = trial.weights_together(min(groups, 2)) is not None
        return replace(structure, vectorized=together)


class _Trial:
    """Two runs of a pair, whose draws are combined in other runs."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        structure: Structure,
        model_trace: Trace,
        guide_trace: Trace,
    ) -> None:
        self.model = model
        self.guide = guide
        self.args = args
        self.kwargs = kwargs
        self.structure = structure
        self.model_rows = only(model_trace, site_is_subsample)
        self.guide_rows = only(guide_trace, site_is_subsample)

        self.first = (model_trace, guide_trace)
        nodes: dict[str, Any] = guide_trace.nodes
        shared = {name: nodes[name]["value"] for name in structure.shared}
        self.second = self.run(model, guide, shared)
        # Random numbers that are no sites are the same in all runs that are compared.
        self.noise = get_rng_states()

        self.guide_is_known = True
        try:
            self.weights(self.first)
        except PROGRAM_ERRORS:
            # Some flows have a density at their own draws alone.
            self.guide_is_known = False

    def run(
        self, model: Program, guide: Program, values: Mapping[str, Tensor]
    ) -> tuple[Trace, Trace]:
        """Runs the pair on the same rows of subsampled plates, with given draws."""
        drawn = only(self.first[1], lambda site: site["name"] in values)
        given = with_values(drawn, values)
        rows: dict[str, Any] = self.guide_rows.nodes
        for name, site in rows.items():
            given.add_node(name, **site)
        replayed = poutine.replay(model, trace=self.model_rows)
        again = poutine.replay(guide, trace=given)
        return trace_summed(replayed, again, self.args, self.kwargs, self.structure)

    def weights(self, traces: tuple[Trace, Trace]) -> Weights:
        """Returns the weights of a run.

        The values are copies, so that no sampler recognizes its own draw and returns a density
        that it has stored.
        """
        copies = []
        for trace in traces:
            values = {
                name: site["value"].clone()
                for name, site in drawn_of(sample_sites(trace)).items()
            }
            copies.append(with_values(trace, values))
        guide_trace = copies[1] if self.guide_is_known else Trace()
        return weigh(self.model, copies[0], guide_trace, self.structure, scales="none")

    def again(
        self, values: Mapping[str, Tensor], pair: tuple[Program, Program] | None = None
    ) -> Weights:
        """Returns the weights of given draws, with the same random numbers as in other runs."""
        set_rng_states(self.noise)
        model, guide = pair or (self.model, self.guide)
        return self.weights(self.run(model, guide, values))

    @functools.cached_property
    def draws(self) -> dict[str, tuple[Site, Tensor, Tensor]]:
        """The sites that the guide draws at random, with their values in both runs."""
        first = dict(guide_terms(self.first[1]))
        second = dict(guide_terms(self.second[1]))
        found = {}
        for name in self.structure.latent:
            site = first[name]
            if site["is_observed"]:
                continue
            other: Tensor = second[name]["value"]
            if self.structure.group(name, site) != SHARED:
                other = _different(second[name], site["value"])
            found[name] = (site, site["value"], other)
        return found

    def _draws_of(self, run: int) -> dict[str, Tensor]:
        """Returns the draws of the first run or of the second."""
        return {name: values[run - 1] for name, (_, *values) in self.draws.items()}

    def data_points_are_independent(self) -> bool:
        """Whether each data point's weight is a function of its own draws.

        Runs mix the draws of the first and the second run, and each data point must have the
        weight of its draws. And no density may have a derivative in another data point's draws,
        which also shows dependences that are too weak to change a weight. Every two data points
        are told apart by one of the derivatives; by one of the runs too, if there are draws
        that have no derivatives.
        """
        try:
            first = self.again(self._draws_of(1))
            second = self.again(self._draws_of(2))
            continuous = all(site["fn"].has_rsample for site, _, _ in self.draws.values())
            for turns in itertools.islice(_halves(first), 2 if continuous else None):
                if not self._mixture_agrees(first, second, turns):
                    return False
            if not self._have_derivatives_of_their_own(_halves(first)):
                return False
        except PairError:
            raise
        except PROGRAM_ERRORS:
            return False
        return self._shared_densities_are_shared()

    def _mixture_agrees(
        self, first: Weights, second: Weights, turns: Sequence[Tensor]
    ) -> bool:
        """Whether a mixture of both runs' draws has the weights of its draws."""
        values = {}
        for name, (site, one, other) in self.draws.items():
            place = self.structure.group(name, site)
            values[name] = one
            if place != SHARED:
                turn = first.groups[place].spread(turns[place], site)
                values[name] = torch.where(turn, other, one)

        mixed = self.again(values)
        groups = zip(turns, first.groups, second.groups, mixed.groups, strict=True)
        for turn, *weights in groups:
            one, other, found = (group.log_weights[0, 0] for group in weights)
            if not _close(torch.where(turn, other, one), found):
                return False
        if first.shared is None or mixed.shared is None:
            return True
        return _close(first.shared.log_weights, mixed.shared.log_weights)

    def _shared_densities_are_shared(self) -> bool:
        """Whether the densities that belong to no data point are those of all particles.

        In a plate of particles they have no dimension for them. A density that depends on a
        draw without a derivative, as through a comparison or an index, has one.
        """
        together = self.weights_together(1)
        if together is None:
            return True  # The pair takes no plate, and its values have been compared.
        alone = self.again(self._draws_of(1)).shared
        if together.shared is None or alone is None:
            return True
        return _close(together.shared.log_weights, alone.log_weights)

    def _have_derivatives_of_their_own(self, halves: Iterable[Sequence[Tensor]]) -> bool:
        """Whether the densities of half of the data points have no derivative in the draws of
        the others.
        """
        draws = self.draws
        values = self._draws_of(1)
        with torch.enable_grad():
            leaves = {
                name: one.detach().clone().requires_grad_()
                for name, (site, one, _) in draws.items()
                if one.is_floating_point() and self.structure.group(name, site) != SHARED
            }
            copies = {name: leaf.clone() for name, leaf in leaves.items()}
            groups = self.again(values | copies).groups
            for chosen in halves:
                parts = []
                for choice, group in zip(chosen, groups, strict=True):
                    for density in (group.log_joint, group.log_guide):
                        if density.requires_grad:
                            parts.append(torch.where(choice, density[0, 0], 0.0).sum())
                if not leaves or not parts:
                    return True

                derivatives = torch.autograd.grad(
                    sum_of(parts), list(leaves.values()), retain_graph=True, allow_unused=True
                )
                for name, derivative in zip(leaves, derivatives, strict=True):
                    if derivative is None:
                        continue
                    site = draws[name][0]
                    place = self.structure.group(name, site)
                    own = groups[place].spread(chosen[place], site)
                    others = torch.where(own, 0.0, derivative)
                    if bool((others.nan_to_num() != 0).any()):
                        return False
        return True

    def takes_a_plate(self, groups: int) -> bool:
        """Whether both runs have the same weights together, in a plate of particles."""
        together = self.weights_together(groups)
        if together is None:
            return False
        try:
            alone = [self.again(self._draws_of(run)) for run in (1, 2)]
        except PairError:
            raise
        except PROGRAM_ERRORS:
            return False
        if any(len(group.log_joint) > groups for group in together.groups):
            return False  # The densities have dimensions to the left of the particles.
        agree = all(
            _close(group.log_weights[g, k], alone[k].groups[place].log_weights[0, 0])
            for place, group in enumerate(together.groups)
            for g in range(groups)
            for k in range(2)
        )
        return agree or self._is_noisy(alone[0])

    def weights_together(self, groups: int) -> Weights | None:
        """Returns the weights of both runs in a plate of particles, None if that fails."""
        pair = in_plates(self.model, self.guide, groups, 2, self.structure)
        try:
            return self.again(self._stacked_draws(groups), pair)
        except PairError:
            raise
        except PROGRAM_ERRORS:
            return None

    def _stacked_draws(self, groups: int) -> dict[str, Tensor]:
        """Returns the draws of both runs as two particles of each group."""
        values = {}
        for name, (site, one, other) in self.draws.items():
            shared = self.structure.group(name, site) == SHARED
            both = torch.stack([one] if shared else [one, other])
            # The particles lie to the left of all plates.
            missing = self.structure.nesting + site["fn"].event_dim - one.dim()
            both = both.reshape(both.shape[:1] + (1,) * missing + one.shape)
            values[name] = both if groups == 1 else both.expand(groups, *both.shape)
        return values

    def _is_noisy(self, first: Weights) -> bool:
        """Whether the programs draw random numbers that are no sites.

        Particles in a plate then have other numbers than one particle alone.
        """
        torch.rand(())
        again = self.weights(self.run(self.model, self.guide, self._draws_of(1)))
        pairs = zip(first.groups, again.groups, strict=True)
        return not all(_close(one.log_weights, other.log_weights) for one, other in pairs)


def _different(site: Site, other: Tensor) -> Tensor:
    """Returns the value of a site; discrete ones are drawn again where they are the other."""
    value: Tensor = site["value"]
    if site["fn"].has_rsample:
        return value
    for _ in range(10):
        same = value == other
        for _ in range(site["fn"].event_dim):
            same = same.all(-1, keepdim=True)
        if not same.any():
            break
        value = torch.where(same, site["fn"].sample(), value)
    return value


def _halves(weights: Weights) -> Iterator[list[Tensor]]:
    """Yields masks of half of the data points, one for each group.

    Each data point is in half of the masks, and no two of them are in the same ones, so that
    for every two data points there is a mask with the first and without the second. Which
    data points are together is random.
    """
    rows = [group.log_joint[0, 0] for group in weights.groups]
    sizes = [row.numel() for row in rows]
    num_masks = 1
    while math.comb(num_masks, num_masks // 2) < sum(sizes):
        num_masks += 1
    places = itertools.combinations(range(num_masks), num_masks // 2)
    chosen = torch.zeros(sum(sizes), num_masks, dtype=torch.bool)
    index = torch.tensor(list(itertools.islice(places, len(chosen))), dtype=torch.long)
    chosen.scatter_(1, index, True)
    chosen = chosen[torch.randperm(len(chosen))]
    for half in chosen.unbind(1):
        yield [
            part.reshape(row.shape).to(row.device)
            for part, row in zip(half.split(sizes), rows, strict=True)
        ]


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two results are equal up to the order of the same operations."""
    if one.shape != other.shape:
        return False
    size = torch.maximum(one.abs(), other.abs()).clamp(min=1.0)
    close = (one - other).abs() <= _tolerance(one) * size
    return bool((close | (one == other) | (one.isnan() & other.isnan())).all())


def _tolerance(value: Tensor) -> float:
    """Returns the relative error that another order of operations may cause."""
    return min(max(1e3 * torch.finfo(value.dtype).eps, 1e-6), 0.05)


def log_weights(
    model: Program,
    guide: Program,
    *args: object,
    num_particles: int = 1,
    plate_nesting: int | None = None,
    structure: Structure | None = None,
    **kwargs: object,
) -> Tensor:
    r"""Returns the log weights of a pair, a row for each particle and a column for each data
    point.

    .. math:: \log w_{kn} = \log p(x_n, z_{nk}) - \log q(z_{nk} \mid x_n), \qquad
              z_{nk} \sim q(z \mid x_n)

    Data points are the indices of the plates that hold all sites; all other dimensions are
    summed. The scales of subsampling and of ``poutine.scale`` are left out, because these are
    the weights of single data points. Masks count.

    Arguments:
        model: The model.
        guide: The guide.
        args: The arguments that both are called with.
        num_particles: K, the number of draws from the guide.
        plate_nesting: How many dimensions the pair's plates take; found if not given.
        structure: The structure of the pair, if it is known.
        kwargs: The keyword arguments that both are called with.

    Returns:
        A tensor with shape ``(num_particles, *sizes of the plates)``, in nats.

    Raises:
        PairError: If the sites of model and guide do not match, or data points share latent
            variables and so have no weights of their own.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> prior = default_prior(dist.Normal, 2)
        >>> p = models.VAE(prior, Conditional(dist.Bernoulli, MLP(2, [8]), 64))
        >>> q = guides.VAE(Conditional(dist.Normal, MLP(64, [8]), 2))
        >>> log_weights(p, q, torch.zeros(10, 64), num_particles=5).shape
        torch.Size([5, 10])
    """
    if structure is None:
        structure = structure_of(
            model, guide, args, kwargs, particles=num_particles, observed=True
        )
    if plate_nesting is not None:
        structure = replace(structure, nesting=plate_nesting)
    check_local(model, structure)
    weights = draw_weights(
        model, guide, args, kwargs, 1, num_particles, structure, scales="none"
    )
    return by_point(weights, structure)


def by_point(weights: Weights, structure: Structure) -> Tensor:
    """Returns log weights, of shape ``(num_particles, *sizes of the plates)``.

    The data points of several groups of sites lie in one dimension.
    """
    if len(weights.groups) > 1:
        return torch.cat([group.log_weights[0] for group in weights.groups], -1)
    (group,) = weights.groups
    sizes = [group.shape[dim] for dim in structure.groups[0].dims]
    return group.log_weights[0].reshape(-1, *sizes)


def check_vectorized(
    model: Program,
    guide: Program,
    structure: Structure,
    wanted_by: str,
    remedy: str = "let its shapes broadcast on the left, as in z[..., i] and softmax(-1)",
) -> None:
    """Raises a ``PairError`` if a pair cannot run in a plate of particles.

    Arguments:
        model: The model.
        guide: The guide.
        structure: Their structure.
        wanted_by: What needs such a plate, for the message.
        remedy: What to do, for the message.
    """
    if structure.vectorized is False:
        raise PairError(
            f"{wanted_by} runs all particles together, and {name_of(model)} or"
            f" {name_of(guide)} cannot run in a plate of particles: {remedy}."
        )


def about_masks(model: Program, structure: Structure) -> str:
    """The beginning of a sentence about latent variables that only one program masks."""
    name = structure.unmatched[0]
    return (
        f"{name_of(model)} and its guide mask {name!r} in different places, where log p - log q"
        " lacks a term"
    )


def check_drawn(model: Program, structure: Structure) -> None:
    """Raises a ``PairError`` if the model sums out a site that the guide does not draw."""
    if structure.enumerated:
        raise PairError(
            f"{name_of(model)} enumerates {sorted(structure.enumerated)}, and values of them are"
            " needed here: draw these sites in the guide, or take log_likelihood or elbo, which"
            " sum them out."
        )


def check_local(model: Program, structure: Structure) -> None:
    """Raises unless data points have weights of their own, all in the same plates, whose
    latent variables both programs mask alike.

    Raises:
        PairError: If they have not.
    """
    name = name_of(model)
    if structure.joint and not structure.nesting and structure.latent:
        raise PairError(
            f"{name} has no weight for each data point, because no site lies in a plate: put"
            " the sites of a data point inside one, such as pyro.plate('data', len(x)), or"
            " take -IWAE(num_particles).loss(model, guide, x), the bound of all data."
        )
    shared = list(structure.latent) if structure.joint else structure.shared
    if structure.joint and not shared:
        raise PairError(
            f"{name} has no weight for each data point, because the guide draws nothing, as"
            " AutoDelta does: give a guide that draws the latent variables of each data point."
        )
    if structure.joint or shared:
        raise PairError(
            f"{name} has no weight for each data point, because its data points share"
            f" {sorted(shared)}: if each data point has its own, put them inside"
            " pyro.plate('data', len(x)), and else take"
            " -IWAE(num_particles).loss(model, guide, x), the bound of all data."
        )
    if structure.unmatched:
        raise PairError(f"{about_masks(model, structure)}: {FIX_OF_MASKS}.")
    kinds = {frozenset(plate for plate, _ in group.plates) for group in structure.groups}
    if len(kinds) > 1:
        raise PairError(
            f"{name} has several kinds of data points, in the plates"
            f" {sorted(map(sorted, kinds))}: evaluate one kind at a time."
        )

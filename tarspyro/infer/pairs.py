"""A pair of programs: its structure, tried out, and the log weights of its data points."""

__all__ = ["check_local", "log_weights", "structure_of"]

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from tarspyro.infer.structure import SHARED, Structure, read_structure
from tarspyro.infer.traces import (
    PairError,
    Program,
    Site,
    guide_terms,
    name_of,
    only,
    sample_sites,
    trace_pair,
    with_values,
)
from tarspyro.infer.weights import Weights, in_plates, weigh, weigh_one_by_one
from tarspyro.modules import evaluating, preserved_rng

# What a program raises on values of a shape that it was not written for.
_FAILURES = (RuntimeError, ValueError, KeyError, IndexError, TypeError, NotImplementedError, AssertionError)


def structure_of(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    particles: int = 1,
    groups: int = 1,
    vectorize: bool = True,
    whole: bool = False,
    observed: bool = False,
) -> Structure:
    """Finds the structure of a pair by a few runs that leave no mark on random state and statistics.

    With several particles the structure is tried out on the draws of two runs. A run that takes the draws of some
    data points from the first and those of the others from the second must give each data point the weight of its
    draws. Where it does not, data points depend on each other, and there is one weight of all data. A run of both
    together in a plate of particles must give each the weights that it has alone. Where it does not, or fails, the
    program cannot take such a plate.

    Arguments:
        model: The model.
        guide: The guide.
        args: The data.
        kwargs: More of it.
        particles: How many particles the pair will be asked for.
        groups: How many groups of them.
        vectorize: Whether they shall run together.
        whole: Whether the sum over all data is all that will be asked for.
        observed: Whether the model has to observe something.

    Raises:
        PairError: If the halves do not match.
    """
    with preserved_rng():
        structure, *traces = read_structure(model, guide, args, kwargs, observed=observed)
        if particles * groups == 1 or structure.enumerated:
            return structure
        training = any(getattr(program, "training", False) for program in (model, guide))
        with evaluating(model, guide):
            if training:  # where noise and statistics of the batch would tie data points together
                traces = list(trace_pair(model, guide, args, kwargs))
            tried = structure.whole if whole else structure
            trial = _Trial(model, guide, args, kwargs, tried, traces[0], traces[1])
            if not trial.is_possible():
                return replace(structure, vectorized=vectorize)
            if not tried.joint and not trial.data_points_are_independent():
                structure = trial.structure = structure.whole
            return replace(structure, vectorized=vectorize and trial.takes_a_plate(min(groups, 2)))


class _Trial:
    """Two runs of a pair, whose draws are put together in other ways."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        structure: Structure,
        model_trace: Trace,
        guide_trace: Trace,
    ) -> None:
        self.model, self.guide, self.structure = model, guide, structure
        self.args, self.kwargs = args, kwargs
        self.indices = [only(trace, site_is_subsample) for trace in (model_trace, guide_trace)]
        self.traces = [(model_trace, guide_trace)]
        shared: dict[str, Any] = {name: guide_trace.nodes[name]["value"] for name in structure.shared}
        self.traces.append(self.run(model, guide, shared))

    def run(self, model: Program, guide: Program, values: Mapping[str, Tensor]) -> tuple[Trace, Trace]:
        """Runs the pair on the same rows of subsampled plates, with given draws."""
        given = with_values(only(self.traces[0][1], lambda site: site["name"] in values), values)
        for name, site in self.indices[1].nodes.items():
            given.add_node(name, **site)
        halves = poutine.replay(model, trace=self.indices[0]), poutine.replay(guide, trace=given)
        return trace_pair(*halves, self.args, self.kwargs)

    def weights(self, traces: tuple[Trace, Trace]) -> Weights:
        """The weights of a run, from what its values are, and not from what samplers remember of them."""
        plain = [
            with_values(trace, {n: site["value"].clone() for n, site in sample_sites(trace) if not site["is_observed"]})
            for trace in traces
        ]
        return weigh(self.model, plain[0], plain[1], self.structure, scales="none")

    @property
    def draws(self) -> dict[str, tuple[Site, Tensor, Tensor]]:
        """The two values of each site that the guide draws at random."""
        first, second = (dict(guide_terms(guide_trace)) for _, guide_trace in self.traces)
        return {
            name: (first[name], first[name]["value"], second[name]["value"])
            for name in self.structure.latent
            if not first[name]["is_observed"]
        }

    def is_possible(self) -> bool:
        """Whether densities are known at given values, which some flows know at their own draws alone."""
        try:
            self.weights(self.traces[0])
        except _FAILURES:
            return False
        return True

    def data_points_are_independent(self) -> bool:
        """Whether each data point keeps its weight where every second one takes its draws from the other run."""
        try:
            first, second = (self.weights(traces) for traces in self.traces)
            turns = [
                (torch.arange(group.log_joint.shape[-1], device=group.log_joint.device) + place) % 2 == 1
                for place, group in enumerate(first.groups)
            ]
            values = {}
            for name, (site, one, other) in self.draws.items():
                place = self.structure.group(name, site)
                values[name] = one
                if place != SHARED:
                    turn = first.groups[place].spread(turns[place], site)
                    values[name] = torch.where(turn, other, one)
            mixed = self.weights(self.run(self.model, self.guide, values))
        except _FAILURES as error:
            if isinstance(error, PairError):
                raise
            return False
        agree = all(
            _close(torch.where(turn, two.log_weights[0, 0], one.log_weights[0, 0]), both.log_weights[0, 0])
            for one, two, both, turn in zip(first.groups, second.groups, mixed.groups, turns, strict=True)
        )
        return agree or self.is_noisy(first)

    def takes_a_plate(self, groups: int) -> bool:
        """Whether both runs have the same weights together, in a plate of particles."""
        nesting = self.structure.nesting
        try:
            values = {}
            for name, (site, one, other) in self.draws.items():
                shared = self.structure.group(name, site) == SHARED
                both = torch.stack([one] if shared else [one, other])
                both = both.reshape(both.shape[:1] + (1,) * (nesting + site["fn"].event_dim - one.dim()) + one.shape)
                values[name] = both if groups == 1 else both.expand(groups, *both.shape)
            halves = in_plates(self.model, self.guide, groups, 2, self.structure)
            together = self.weights(self.run(*halves, values))
            alone = [self.weights(traces) for traces in self.traces]
        except _FAILURES as error:
            if isinstance(error, PairError):
                raise
            return False
        agree = all(
            _close(group.log_weights[g, k], alone[k].groups[place].log_weights[0, 0])
            for place, group in enumerate(together.groups)
            for g in range(groups)
            for k in range(2)
        )
        return agree or self.is_noisy(alone[0])

    def is_noisy(self, first: Weights) -> bool:
        """Whether the programs draw random numbers that are no sites, so that no two runs can be compared."""
        again = self.weights(self.run(self.model, self.guide, {name: one for name, (_, one, _) in self.draws.items()}))
        pairs = zip(first.groups, again.groups, strict=True)
        return not all(_close(one.log_weights, other.log_weights) for one, other in pairs)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether results of the same computation in another order are equal, where they are finite."""
    if one.shape != other.shape:
        return False
    tolerance = 10 * torch.finfo(one.dtype).eps ** 0.5
    size = torch.maximum(one.abs(), other.abs()).clamp(min=1.0)
    return not bool(((one - other).abs() > tolerance * size).any())


def log_weights(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 1,
    plate_nesting: int | None = None,
    structure: Structure | None = None,
    **kwargs: Any,
) -> Tensor:
    r"""Returns the log weights of a pair, one row a particle and one column a data point.

    .. math:: \log w_{kn} = \log p(x_n, z_{nk}) - \log q(z_{nk} \mid x_n), \qquad z_{nk} \sim q(z \mid x_n)

    Data points are the indices of the plates that hold all sites of one; everything else is summed. Scales (of
    subsampling, or of ``poutine.scale``) do not enter: these are the weights of single data points. Masks do.

    Arguments:
        model: The model.
        guide: The guide.
        args: The data.
        num_particles: K.
        plate_nesting: How many plates deep the pair is; found if not given.
        structure: The structure of the pair, if it is known.
        kwargs: More data.

    Returns:
        A tensor with shape ``(num_particles, *sizes of the plates)``, in nats.

    Raises:
        PairError: If the halves do not match, or latent variables are shared by data points, so that these have no
            weights of their own.
    """
    if structure is None:
        structure = structure_of(model, guide, args, kwargs, particles=num_particles, observed=True)
    if plate_nesting is not None:
        structure = replace(structure, nesting=plate_nesting)
    check_local(model, structure)
    if structure.vectorized is False:
        weights = weigh_one_by_one(model, guide, args, kwargs, 1, num_particles, structure, scales="none")
    else:
        halves = in_plates(model, guide, 1, num_particles, structure)
        weights = weigh(model, *trace_pair(*halves, args, kwargs), structure, scales="none")
    if len(weights.groups) > 1:
        return torch.cat([group.log_weights[0] for group in weights.groups], -1)
    (group,) = weights.groups
    sizes = [group.shape[dim] for dim in structure.groups[0].dims]
    return group.log_weights[0].reshape(-1, *sizes)


def check_local(model: Program, structure: Structure) -> None:
    """Raises unless data points have weights of their own, all of one kind.

    Raises:
        PairError: If not.
    """
    if structure.enumerated:
        raise PairError(
            f"{name_of(model)} enumerates {sorted(structure.enumerated)}, which leaves data points no weights of their "
            "own: draw them in the guide, or take -ELBO().loss(...), the bound of all data."
        )
    if structure.joint and not structure.nesting and structure.latent:
        raise PairError(
            f"{name_of(model)} has no weight for each data point, because no site lies in a plate: put what belongs to "
            "a data point inside one, such as pyro.plate('data', len(x)), or take -IWAE(num_particles).loss(...), the "
            "bound of all data."
        )
    shared = list(structure.latent) if structure.joint else structure.shared
    if structure.joint or shared:
        raise PairError(
            f"{name_of(model)} has no weight for each data point, because its data points share {sorted(shared)}: take "
            "-IWAE(num_particles).loss(...), the bound of all data, or condition the model on what they share."
        )
    kinds = {frozenset(name for name, _ in group.plates) for group in structure.groups}
    if len(kinds) > 1:
        raise PairError(
            f"{name_of(model)} has several kinds of data points, in the plates {sorted(map(sorted, kinds))}: evaluate "
            "one kind at a time."
        )

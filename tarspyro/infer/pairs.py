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
    Site,
    guide_terms,
    name_of,
    only,
    sample_sites,
    sum_of,
    trace_pair,
    with_values,
)
from tarspyro.infer.weights import Weights, in_plates, weigh, weigh_one_by_one
from tarspyro.scopes import evaluating, get_rng_states, preserved_rng, set_rng_states
from tarspyro.types import Program

# What a program raises on values of a shape that it was not written for.
_FAILURES = (
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    NotImplementedError,
    AssertionError,
)


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
    """Finds the structure of a pair by a few runs that leave no mark on random state and
    statistics.

    With several particles the structure is tried out on the draws of two runs. A run that
    takes the draws of some data points from the first and those of the others from the second
    must give each data point the weight of its draws, and derivatives must agree. Where they
    do not, data points depend on each other, and there is one weight of all data. A run of
    both together in a plate of particles must give each the weights that it has alone. Where
    it does not, or fails, the program cannot take such a plate.

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
            if (
                training
            ):  # where noise and statistics of the batch would tie data points together
                traces = list(trace_pair(model, guide, args, kwargs))
            tried = structure.whole if whole else structure
            trial = _Trial(model, guide, args, kwargs, tried, traces[0], traces[1])
            if not tried.joint and not trial.data_points_are_independent():
                structure = trial.structure = structure.whole
            return replace(
                structure, vectorized=vectorize and trial.takes_a_plate(min(groups, 2))
            )


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
        shared: dict[str, Any] = {
            name: guide_trace.nodes[name]["value"] for name in structure.shared
        }
        self.traces.append(self.run(model, guide, shared))
        self.noise = (
            get_rng_states()
        )  # of what is no site, the same in all runs that are compared
        self.guide_is_known = True
        try:
            self.weights(self.traces[0])
        except _FAILURES:
            self.guide_is_known = (
                False  # some flows know their densities at their own draws alone
            )

    def run(
        self, model: Program, guide: Program, values: Mapping[str, Tensor]
    ) -> tuple[Trace, Trace]:
        """Runs the pair on the same rows of subsampled plates, with given draws."""
        given = with_values(
            only(self.traces[0][1], lambda site: site["name"] in values), values
        )
        for name, site in self.indices[1].nodes.items():
            given.add_node(name, **site)
        halves = (
            poutine.replay(model, trace=self.indices[0]),
            poutine.replay(guide, trace=given),
        )
        return trace_pair(*halves, self.args, self.kwargs)

    def weights(self, traces: tuple[Trace, Trace]) -> Weights:
        """The weights of a run, from what its values are, and not from what samplers remember
        of them.
        """
        plain = [
            with_values(
                trace,
                {
                    n: site["value"].clone()
                    for n, site in sample_sites(trace)
                    if not site["is_observed"]
                },
            )
            for trace in traces
        ]
        guide_trace = plain[1] if self.guide_is_known else Trace()
        return weigh(self.model, plain[0], guide_trace, self.structure, scales="none")

    def again(
        self, values: Mapping[str, Tensor], halves: tuple[Program, Program] | None = None
    ) -> Weights:
        """The weights of given draws."""
        set_rng_states(self.noise)
        return self.weights(self.run(*(halves or (self.model, self.guide)), values))

    @property
    def draws(self) -> dict[str, tuple[Site, Tensor, Tensor]]:
        """The two values of each site that the guide draws at random."""
        first, second = (dict(guide_terms(guide_trace)) for _, guide_trace in self.traces)
        return {
            name: (first[name], first[name]["value"], second[name]["value"])
            for name in self.structure.latent
            if not first[name]["is_observed"]
        }

    def _run_of(self, which: int) -> dict[str, Tensor]:
        """The draws of the first run, or of the second."""
        return {name: (one, other)[which - 1] for name, (_, one, other) in self.draws.items()}

    def data_points_are_independent(self) -> bool:
        """Whether each data point's weight is a function of its own draws.

        Two mixtures of both runs' draws, data point by data point at random, must give each
        the weight of its draws. And no density may have a derivative in another data point's
        draws, which shows what is too small to be seen.
        """
        try:
            draws = self.draws
            first, second = (self.again(self._run_of(k)) for k in (1, 2))
            for _ in range(2):
                turns = [
                    torch.rand_like(group.log_joint[0, 0]) < 0.5 for group in first.groups
                ]
                values = {}
                for name, (site, one, other) in draws.items():
                    place = self.structure.group(name, site)
                    values[name] = one
                    if place != SHARED:
                        values[name] = torch.where(
                            first.groups[place].spread(turns[place], site), other, one
                        )
                mixed = self.again(values)
                for place, turn in enumerate(turns):
                    own = [
                        weights.groups[place].log_weights[0, 0]
                        for weights in (first, second, mixed)
                    ]
                    if not _close(torch.where(turn, own[1], own[0]), own[2]):
                        return False
            return self._have_derivatives_of_their_own(draws)
        except _FAILURES as error:
            if isinstance(error, PairError):
                raise
            return False

    def _have_derivatives_of_their_own(
        self, draws: Mapping[str, tuple[Site, Tensor, Tensor]]
    ) -> bool:
        """Whether densities of some data points, chosen at random, have no derivative in the
        draws of the others.
        """
        values = {name: draw[1] for name, draw in draws.items()}
        with torch.enable_grad():
            leaves = {
                name: one.detach().clone().requires_grad_()
                for name, (site, one, _) in draws.items()
                if one.is_floating_point() and self.structure.group(name, site) != SHARED
            }
            copies = {name: leaf.clone() for name, leaf in leaves.items()}
            groups = self.again(values | copies).groups
            for _ in range(4):
                chosen = [torch.rand_like(group.log_joint[0, 0]) < 0.5 for group in groups]
                parts = [
                    torch.where(choice, density[0, 0], 0.0).sum()
                    for choice, group in zip(chosen, groups, strict=True)
                    for density in (group.log_joint, group.log_guide)
                    if density.requires_grad
                ]
                if not leaves or not parts:
                    return True
                found = torch.autograd.grad(
                    sum_of(parts), list(leaves.values()), retain_graph=True, allow_unused=True
                )
                for name, derivative in zip(leaves, found, strict=True):
                    if derivative is not None:
                        site = draws[name][0]
                        place = self.structure.group(name, site)
                        others = torch.where(
                            groups[place].spread(chosen[place], site), 0.0, derivative
                        )
                        if bool((others.nan_to_num() != 0).any()):
                            return False
        return True

    def takes_a_plate(self, groups: int) -> bool:
        """Whether both runs have the same weights together, in a plate of particles."""
        nesting = self.structure.nesting
        try:
            draws = self.draws
            values = {}
            for name, (site, one, other) in draws.items():
                shared = self.structure.group(name, site) == SHARED
                both = torch.stack([one] if shared else [one, other])
                both = both.reshape(
                    both.shape[:1]
                    + (1,) * (nesting + site["fn"].event_dim - one.dim())
                    + one.shape
                )
                values[name] = both if groups == 1 else both.expand(groups, *both.shape)
            together = self.again(
                values, in_plates(self.model, self.guide, groups, 2, self.structure)
            )
            alone = [self.again(self._run_of(k)) for k in (1, 2)]
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
        return agree or self._is_noisy(alone[0])

    def _is_noisy(self, first: Weights) -> bool:
        """Whether the programs draw random numbers that are no sites, of which particles have
        others than one alone.
        """
        torch.rand(())
        again = self.weights(self.run(self.model, self.guide, self._run_of(1)))
        pairs = zip(first.groups, again.groups, strict=True)
        return not all(_close(one.log_weights, other.log_weights) for one, other in pairs)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether results of the same computation in another order are equal."""
    if one.shape != other.shape:
        return False
    size = torch.maximum(one.abs(), other.abs()).clamp(min=1.0)
    close = (one - other).abs() <= _tolerance(one) * size
    return bool((close | (one == other) | (one.isnan() & other.isnan())).all())


def _tolerance(value: Tensor) -> float:
    """The relative error that another order of operations may make."""
    return min(max(1e3 * torch.finfo(value.dtype).eps, 1e-6), 0.05)


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

    Data points are the indices of the plates that hold all sites of one; everything else is
    summed. Scales (of subsampling, or of ``poutine.scale``) do not enter: these are the
    weights of single data points. Masks do.

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
        PairError: If the halves do not match, or latent variables are shared by data points,
            so that these have no weights of their own.
    """
    if structure is None:
        structure = structure_of(
            model, guide, args, kwargs, particles=num_particles, observed=True
        )
    if plate_nesting is not None:
        structure = replace(structure, nesting=plate_nesting)
    check_local(model, structure)
    if structure.vectorized is False:
        weights = weigh_one_by_one(
            model, guide, args, kwargs, 1, num_particles, structure, scales="none"
        )
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
            f"{name_of(model)} enumerates {sorted(structure.enumerated)}, which leaves data"
            " points no weights of their own: draw them in the guide, or take"
            " -ELBO().loss(...), the bound of all data."
        )
    if structure.joint and not structure.nesting and structure.latent:
        raise PairError(
            f"{name_of(model)} has no weight for each data point, because no site lies in a"
            " plate: put what belongs to a data point inside one, such as pyro.plate('data',"
            " len(x)), or take -IWAE(num_particles).loss(...), the bound of all data."
        )
    shared = list(structure.latent) if structure.joint else structure.shared
    if structure.joint or shared:
        raise PairError(
            f"{name_of(model)} has no weight for each data point, because its data points"
            f" share {sorted(shared)}: take -IWAE(num_particles).loss(...), the bound of all"
            " data, or condition the model on what they share."
        )
    kinds = {frozenset(name for name, _ in group.plates) for group in structure.groups}
    if len(kinds) > 1:
        raise PairError(
            f"{name_of(model)} has several kinds of data points, in the plates"
            f" {sorted(map(sorted, kinds))}: evaluate one kind at a time."
        )

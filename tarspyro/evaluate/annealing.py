"""Log-likelihoods by annealed importance sampling, which depend little on the guide."""

__all__ = ["annealed_log_likelihood"]

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from tarspyro.arguments import as_count, check_choice
from tarspyro.evaluate.batching import ParticleChunks, map_batches
from tarspyro.evaluate.densities import Densities
from tarspyro.evaluate.likelihood import LogLikelihood, log_mean_exp, num_particles_of
from tarspyro.evaluate.unconstrained import check_supports, to_support
from tarspyro.infer.compilation.values import CompiledValues
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import (
    PairError,
    check_densities,
    name_of,
    sample_sites,
    sum_of,
)
from tarspyro.programs import tensors_of
from tarspyro.scopes import preserved_rng
from tarspyro.types import Argument, Arguments, Data, Program

# The number of chains that adapt the step size. They carry no weight: if the step size
# followed the acceptance of the weighted chains, the weights would be biased.
_PILOTS = 4
# The acceptance that the step size aims at.
_ACCEPTANCE = 0.65
_FIRST_STEP = 0.3
# The change of the log step size for each unit of acceptance above the target.
_ADAPTATION = 0.1

# A value for each latent variable, in unconstrained space.
Position: TypeAlias = dict[str, Tensor]


def annealed_log_likelihood(
    model: Program,
    guide: Program,
    x: Data,
    *,
    num_steps: int = 1000,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    start: str = "prior",
    errors: bool = False,
    binarize: bool = False,
    seed: int | None = None,
    compile: bool = False,
) -> Any:
    r"""Estimates the log-likelihood of each data point by annealed importance sampling.

    In nats. A chain starts at a draw of :math:`f_0`, the prior or the guide, and follows a
    path of densities to the joint,

    .. math:: f_\beta(z) = f_0(z)^{1 - \beta} \, p(x, z)^\beta, \qquad
              0 = \beta_0 < \dots < \beta_T = 1

    After each :math:`\beta_t` a step of Hamiltonian Monte Carlo, which leaves
    :math:`f_{\beta_t}` invariant, moves the chain. The chain's weight is unbiased for the
    likelihood, whatever the number of steps:

    .. math:: \log w =
              \sum_{t=1}^T \log f_{\beta_t}(z_{t-1}) - \log f_{\beta_{t-1}}(z_{t-1}), \qquad
              \log p(x) \approx \log \frac{1}{K} \sum_{k=1}^K w_k

    (Neal 2001; Wu et al. 2017, arXiv:1611.04273, section 2.3, with their sigmoidal schedule
    and target acceptance of 65 %.) Latent variables move in unconstrained space, with the
    Jacobian of torch's ``biject_to``; points of a sphere are the directions of vectors, and
    angles go around a circle. Each data point has its own step size, adapted to the acceptance
    of four more chains that carry no weight.

    In expectation the estimate is a lower bound, which is tight if the chains follow the path
    closely. From the prior it does not depend on the guide, so it also reaches modes that the
    guide, and with it ``log_likelihood``, misses.

    Arguments:
        model: The model. Its latent variables are continuous and in the data's plate.
        guide: The guide. With ``start="prior"`` it only has to have the model's latent sites.
        x: The data, in any form that ``fit`` takes.
        num_steps: T, the number of densities after the first.
        num_chains: K, for each data point.
        num_leapfrog: The number of leapfrog steps of a move, each with a gradient of the log
            joint.
        start: The density :math:`f_0`, ``"prior"`` or ``"guide"``.
        errors: Whether to return a tuple (log_likelihood, standard_error,
            effective_sample_size), as ``log_likelihood`` does.
        binarize: Whether to draw black and white pixels, once, with the grey values as
            probabilities. The same seed draws the same pixels as in ``log_likelihood``.
        seed: The seed of the draws; the global random state then stays unchanged.
        compile: Whether to compile the leapfrog steps, as ``fit(compile=True)`` does with steps
            of training. It takes some seconds for each shape of a batch, and pays for small
            networks or many steps.

    Returns:
        One number for each data point, or three: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If a latent site is not continuous or lies outside the plate of the data, if
            its support depends on another one,
            if the model and the guide differ in their latent sites, or if the prior cannot be
            drawn from.
        ValueError: If an argument is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> x = torch.tensor([0.0, 2.0])
        >>> estimate = annealed_log_likelihood(model, guide, x, num_steps=100, seed=0)
        >>> (estimate - dist.Normal(0.0, 2.0**0.5).log_prob(x)).abs().max() < 0.2
        tensor(True)
    """
    check_choice("start", start, ("prior", "guide"))
    num_chains = num_particles_of("num_chains", num_chains, errors)
    num_leapfrog = as_count("num_leapfrog", num_leapfrog)
    schedule = _sigmoidal(as_count("num_steps", num_steps))
    chunks = ParticleChunks(model, guide, num_chains)
    # The chunks keep each structure, so that its id stays its own.
    compiled: defaultdict[int, list[tuple[object, CompiledValues]]] = defaultdict(list)

    def path(batch: Arguments, structure: Structure) -> _Path:
        densities = Densities(model, guide, batch, structure)
        with preserved_rng():
            torch.rand(())  # other draws than those of the densities
            again = sample_sites(densities.run(model, densities.draws(guide, 1)))
        check_supports(densities.latent, dict(again))
        if compile:
            return _CompiledPath(densities, start, compiled[id(structure)])
        return _Path(densities, start)

    def estimate(*batch: Argument) -> LogLikelihood:
        log_w = (
            _anneal(path(batch, structure), schedule, count, num_leapfrog)
            for count, structure in chunks(batch)
        )
        return log_mean_exp(log_w, num_chains)

    result = map_batches(estimate, (model, guide), x, binarize=binarize, seed=seed, check=True)
    return result if errors else result.log_likelihood


class _State(NamedTuple):
    """A place of each chain, its momentum, and the densities there."""

    position: Position
    momentum: Position
    gradient: Position  # of log f_beta
    log_density: Tensor  # log f_beta
    difference: Tensor  # log f_1 - log f_0


class _Path:
    """The path from f_0 to the joint f_1, in unconstrained space."""

    def __init__(self, densities: Densities, start: str) -> None:
        self.densities = densities
        self.start = start
        self.transforms = {
            name: to_support(name, site["fn"]) for name, site in densities.latent.items()
        }

    def draws(self, count: int) -> Position:
        """Returns draws of f_0."""
        half = self.densities.model if self.start == "prior" else self.densities.guide
        try:
            sites = dict(sample_sites(self.densities.run(half, {}, count)))
        except NotImplementedError:
            raise PairError(
                f"{name_of(half)} has no prior that can be drawn from: take start='guide'."
            ) from None
        drawn = {name: sites[name] for name in self.transforms}
        if self.start == "guide":
            check_densities(drawn.values(), "start='guide'", "take start='prior'")
        return {name: self.transforms[name].inv(site["value"]) for name, site in drawn.items()}

    def __call__(self, position: Position) -> tuple[Tensor, Tensor]:
        """Returns log f_0 and log f_1 - log f_0."""
        values = {name: self.transforms[name](at) for name, at in position.items()}
        volume = sum_of(
            self.densities.reduce(self.transforms[name].log_abs_det_jacobian(at, values[name]))
            for name, at in position.items()
        )
        prior, likelihood = self.densities.log_model(values)
        if self.start == "prior":
            return prior + volume, likelihood
        guide = self.densities.log_guide(values)
        return guide + volume, prior + likelihood - guide

    def at(self, position: Position, momentum: Position, beta: Tensor) -> _State:
        """Returns the state of chains at a place."""
        position = {name: value.detach().requires_grad_() for name, value in position.items()}
        with torch.enable_grad():
            first, difference = self(position)
            log_density = first + beta * difference
            gradients = torch.autograd.grad(log_density.sum(), list(position.values()))
        return _State(
            {name: value.detach() for name, value in position.items()},
            momentum,
            dict(zip(position, gradients, strict=True)),
            log_density.detach(),
            difference.detach(),
        )

    def leapfrog(
        self,
        position: Position,
        momentum: Position,
        gradient: Position,
        step_size: Tensor,
        beta: Tensor,
    ) -> _State:
        """Returns the state after a leapfrog step."""
        sizes = {name: self.unsqueezed(step_size, name) for name in self.transforms}

        def pushed(momentum: Position, gradient: Position) -> Position:
            return {name: p + sizes[name] / 2 * gradient[name] for name, p in momentum.items()}

        momentum = pushed(momentum, gradient)
        position = {name: z + sizes[name] * momentum[name] for name, z in position.items()}
        moved = self.at(position, momentum, beta)
        return moved._replace(momentum=pushed(momentum, moved.gradient))

    def kinetic(self, momentum: Position) -> Tensor:
        """Returns the kinetic energy of each chain and data point."""
        return sum_of(
            self.densities.reduce(
                sum_rightmost(p.square() / 2, self.transforms[name].domain.event_dim)
            )
            for name, p in momentum.items()
        )

    def unsqueezed(self, value: Tensor, name: str) -> Tensor:
        """Adds the event dimensions of a latent variable, so that the value broadcasts with
        it.
        """
        return value.reshape(value.shape + (1,) * self.transforms[name].domain.event_dim)


class _CompiledPath(_Path):
    """A path whose leapfrog steps are compiled.

    Arguments:
        densities: See ``_Path``.
        start: See ``_Path``.
        compiled: What other paths of the same structure and support have compiled.
    """

    def __init__(
        self, densities: Densities, start: str, compiled: list[tuple[object, CompiledValues]]
    ) -> None:
        super().__init__(densities, start)
        found = [steps for transforms, steps in compiled if transforms == self.transforms]
        if not found:
            programs = (densities.model, densities.guide)
            found = [CompiledValues(self._flat_leapfrog, programs)]
            compiled.append((self.transforms, found[0]))
        self._steps = found[0]

    def leapfrog(
        self,
        position: Position,
        momentum: Position,
        gradient: Position,
        step_size: Tensor,
        beta: Tensor,
    ) -> _State:
        """Returns the state after a leapfrog step."""
        flat = [*position.values(), *momentum.values(), *gradient.values()]
        values = self._steps(step_size, beta, *flat, *self.densities.batch)
        return _State(
            *self._positions([*values.values()]), values["log f"], values["difference"]
        )

    def _flat_leapfrog(
        self, step_size: Tensor, beta: Tensor, *tensors: Argument
    ) -> dict[str, Tensor]:
        """The step as a function of tensors, of which the last ones are the data."""
        count = 3 * len(self.transforms)
        path = _Path(self.densities.of(tensors[count:]), self.start)
        state = path.leapfrog(*self._positions(tensors_of(tensors[:count])), step_size, beta)
        named = {
            f"{part} {name}": value
            for part, values in enumerate(state[:3])
            for name, value in values.items()
        }
        return named | {"log f": state.log_density, "difference": state.difference}

    def _positions(self, tensors: Sequence[Tensor]) -> tuple[Position, Position, Position]:
        """Returns the position, the momentum and the gradient of a list of tensors."""
        remaining = iter(tensors)
        position = {name: next(remaining) for name in self.transforms}
        momentum = {name: next(remaining) for name in self.transforms}
        gradient = {name: next(remaining) for name in self.transforms}
        return position, momentum, gradient


def _anneal(path: _Path, schedule: list[float], count: int, num_leapfrog: int) -> Tensor:
    """Returns the log weights of chains, of shape ``(count, *data points)``."""
    position = path.draws(count + _PILOTS)
    _, difference = path(position)
    log_weights = torch.zeros_like(difference)
    step_size = torch.full_like(difference[:1], _FIRST_STEP)

    for previous, beta in itertools.pairwise(schedule):
        log_weights = log_weights + (beta - previous) * difference
        position, difference, acceptance = _move(
            path, position, step_size.new_full((), beta), step_size, num_leapfrog
        )
        error = acceptance[count:].mean(0, keepdim=True) - _ACCEPTANCE
        step_size = step_size * (_ADAPTATION * error).exp()

    return path.densities.columns(log_weights[:count])


def _move(
    path: _Path, position: Position, beta: Tensor, step_size: Tensor, num_leapfrog: int
) -> tuple[Position, Tensor, Tensor]:
    """Moves each chain by a step of Hamiltonian Monte Carlo.

    Returns:
        The new position, log f_1 - log f_0 there, and the probability of acceptance.
    """
    momentum = {name: torch.randn_like(value) for name, value in position.items()}
    start = path.at(position, momentum, beta)
    end = start
    for _ in range(num_leapfrog):
        end = path.leapfrog(*end[:3], step_size, beta)

    log_ratio = _energy(path, start) - _energy(path, end)
    # Where a step left the support, the ratio is NaN and the comparison false.
    accepted = torch.rand_like(log_ratio).log() < log_ratio
    moved = {
        name: torch.where(path.unsqueezed(accepted, name), end.position[name], z)
        for name, z in position.items()
    }
    acceptance = log_ratio.exp().clamp(max=1).nan_to_num(0.0)
    return moved, torch.where(accepted, end.difference, start.difference), acceptance


def _energy(path: _Path, state: _State) -> Tensor:
    return path.kinetic(state.momentum) - state.log_density


def _sigmoidal(num_steps: int) -> list[float]:
    """Returns increasing numbers from 0 to 1 that lie close together at both ends."""
    levels = torch.linspace(-4.0, 4.0, num_steps + 1, dtype=torch.float64).sigmoid()
    schedule: list[float] = ((levels - levels[0]) / (levels[-1] - levels[0])).tolist()
    return schedule

"""A particle filter for pairs of sequential programs."""

__all__ = ["ParticleFilter", "check_filtered", "check_resampling"]

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.utils._pytree import tree_map

from tarspyro.arguments import check_choice, check_number
from tarspyro.infer.bounds.reductions import renyi_bound
from tarspyro.infer.pairs import check_drawn, check_vectorized
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import PairError, name_of, trace_pair
from tarspyro.infer.weights import in_plates, weigh
from tarspyro.sequences import steps_of
from tarspyro.types import Program

_Part = TypeVar("_Part")  # A part of a state, a nest of tuples, that is no tensor.


def check_resampling(threshold: float, resampling: str) -> None:
    """Raises unless these are valid arguments of a particle filter.

    Raises:
        TypeError: If ``threshold`` is not a number.
        ValueError: If ``threshold`` is not from 0 to 1, or ``resampling`` is not one of its
            names.
    """
    check_number("threshold", threshold, 0, 1)
    check_choice("resampling", resampling, ("multinomial", "systematic"))


def check_filtered(model: Program, guide: Program, structure: Structure) -> None:
    """Raises a ``PairError`` if a pair of this structure cannot run in a particle filter."""
    check_drawn(model, structure)
    check_vectorized(model, guide, structure, "A particle filter")


class ParticleFilter:
    r"""K particles for each sequence, proposed by the guide and weighted by the pair.

    .. math:: w_{tk} = w_{t-1,k} \frac{p(x_t, z_{tk} \mid \text{past}_k)}
              {q(z_{tk} \mid x, \text{past}_k)}, \qquad
              \hat p(x_{0:t}) = \prod_{\text{blocks}} \frac{1}{K} \sum_k w_k

    If the effective sample size of a sequence, :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, is below
    ``threshold * K``, its particles are resampled in proportion to their weights, and all
    weights are one again: a block ends. The estimate of p(x) is unbiased. No value is read back
    from the device.

    Arguments:
        model: The model, a ``sequential`` program.
        guide: The guide, a ``sequential`` program.
        args: The arguments that both are called with.
        kwargs: The keyword arguments that both are called with.
        num_particles: K.
        threshold: The effective sample size below which particles are resampled, as a share of
            K; 0 never resamples.
        resampling: ``"multinomial"``, or ``"systematic"``, which has less noise.
        structure: The structure of the pair.
        model_kwargs: Keyword arguments of the model alone, which then may have more steps than
            the guide.

    Attributes:
        finished: The log-likelihood of the blocks that have ended, one for each sequence.
        log_weights: The log weights since the last block ended, of shape ``(K, sequences)``;
            None before the first step.
        scale: The scale of the sequences.
        scores: The score functions of the draws, each with the log-likelihood before them.

    Raises:
        PairError: If a program is not sequential or cannot run in a plate of particles, if the
            model sums sites out, or if there are no weights for each sequence.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        num_particles: int,
        threshold: float,
        resampling: str,
        structure: Structure,
        model_kwargs: Mapping[str, object] | None = None,
    ) -> None:
        check_filtered(model, guide, structure)
        self.num_particles = num_particles
        self.threshold = threshold
        self.resampling = resampling
        self.program = model
        self.structure = structure
        self.goes_on = model_kwargs is not None
        self.model = _Half(model, args, {**kwargs, **(model_kwargs or {})})
        self.guide = _Half(guide, args, kwargs)

        self.finished: Tensor | float = 0.0
        self.log_weights: Any = None
        self.scale: Tensor | float = 1.0
        self.scores: list[tuple[Tensor, Tensor]] = []
        self._shape: tuple[int, ...] = ()  # The weights', with one dimension for each plate.

    @property
    def log_likelihood(self) -> Tensor:
        """The logarithm of the estimate of p(x) so far, one for each sequence."""
        if self.log_weights is None:
            return torch.as_tensor(self.finished)
        return self.finished + renyi_bound(self.log_weights, 0.0)

    def run(self, after_step: Callable[[Trace, Trace], object] | None = None) -> None:
        """Runs to the guide's end, and resamples between the steps.

        Arguments:
            after_step: A function of both traces of a step, called before the filter resamples.

        Raises:
            PairError: If one program has more steps than the other.
        """
        while not self.guide.finished:
            self.resample()
            traces = self.step()
            if after_step is not None:
                after_step(*traces)
            model_goes_on = self.guide.finished and self.goes_on
            if self.model.finished != self.guide.finished and not model_goes_on:
                raise PairError(
                    f"{self.model.name} and {self.guide.name} do not yield the same number of"
                    " times."
                )

    def step(self) -> tuple[Trace, Trace]:
        """Runs both programs to their next ``yield`` and weighs their draws; returns both
        traces.
        """
        halves = in_plates(self.model, self.guide, 1, self.num_particles, self.structure)
        model_trace, guide_trace = trace_pair(*halves, (), {})
        weights = weigh(self.program, model_trace, guide_trace, self.structure)
        if weights.shared is not None or len(weights.groups) > 1:
            raise PairError(
                f"{name_of(self.program)} has latent variables outside of the plate of its"
                " sequences: put them inside it."
            )
        for group in weights.groups:
            if group.score is not None:
                self.scores.append((group.score[0], self.log_likelihood.detach()))
            steps = group.log_weights[0]
            self.log_weights = steps if self.log_weights is None else self.log_weights + steps
            self.scale = group.scale
            self._shape = group.shape[1:]
        for half in (self.model, self.guide):
            half.spread(self.num_particles, self._shape)
        return model_trace, guide_trace

    def resample(self, everywhere: bool = False) -> None:
        """Resamples the sequences with a small effective sample size, or all of them."""
        never = self.num_particles == 1 or (self.threshold == 0 and not everywhere)
        if self.log_weights is None or never:
            return
        shares = torch.softmax(self.log_weights.detach(), 0)
        size = 1 / shares.square().sum(0)
        chosen = (size < self.threshold * self.num_particles) | everywhere
        kept = torch.arange(self.num_particles, device=shares.device).unsqueeze(1)
        ancestors = torch.where(chosen, _ancestors(shares, self.resampling), kept)

        self.finished = torch.where(chosen, self.log_likelihood, self.finished)
        self.log_weights = torch.where(chosen, 0.0, self.log_weights)
        ancestors = ancestors.reshape(self._shape)

        @functools.cache  # a state that both halves share is one tensor afterwards, too
        def rows_of(part: Tensor) -> Tensor:
            index = ancestors.reshape(ancestors.shape + (1,) * (part.dim() - ancestors.dim()))
            return torch.take_along_dim(part, index, 0)

        for half in (self.model, self.guide):
            half.take(rows_of)

    def continuation(self) -> Trace:
        """Runs the model alone to its next ``yield``; returns its trace."""
        model, _ = in_plates(self.model, self.guide, 1, self.num_particles, self.structure)
        return poutine.trace(model).get_trace()


class _Half:
    """A sequential program and its state. A call runs its next step."""

    def __init__(
        self, program: Program, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> None:
        begin = steps_of(program)
        if begin is None:
            raise PairError(
                f"{name_of(program)} does not run step by step: decorate its forward, or the"
                " function, with tarspyro.sequential, and begin each step with state = yield"
                " state."
            )
        self.name = name_of(program)
        self.steps = begin(*args, **kwargs)
        self.state: object = None
        self.finished = False

    def __call__(self) -> None:
        contexts = len(_PYRO_STACK)
        try:
            self.state = self.steps.send(self.state)
        except StopIteration:
            self.finished = True
        if len(_PYRO_STACK) != contexts:
            self.steps.close()  # This leaves the context.
            raise PairError(
                f"{self.name} yields inside of a plate or another context: leave it before the"
                " yield."
            )

    def spread(self, num_particles: int, shape: tuple[int, ...]) -> None:
        """Gives the state one row for each particle, if nothing has been drawn yet.

        Raises:
            PairError: If there are draws, and the state does not have their leading dimensions.
        """

        def rows(part: _Part) -> _Part | Tensor:
            if not isinstance(part, Tensor):
                return part
            if not shape:
                return part.expand(num_particles, *part.shape)
            if part.dim() < len(shape) or len(part) != num_particles:
                raise PairError(
                    f"{self.name} yields a state of shape {tuple(part.shape)}, which has no row"
                    f" for each of {num_particles} particles: give it the leading dimensions of"
                    " the draws."
                )
            return part

        self.state = tree_map(rows, self.state)

    def take(self, rows_of: Callable[[Tensor], Tensor]) -> None:
        """Replaces each tensor of the state by the rows that a function takes of it."""

        def taken(part: _Part) -> _Part | Tensor:
            return rows_of(part) if isinstance(part, Tensor) else part

        self.state = tree_map(taken, self.state)


def _ancestors(shares: Tensor, resampling: str) -> Tensor:
    """Draws the indices of K particles in proportion to their shares: shape (K, sequences)."""
    count, sequences = shares.shape
    ends = shares.cumsum(0).T.contiguous()
    columns = 1 if resampling == "systematic" else count
    places = torch.rand(sequences, columns, device=shares.device, dtype=shares.dtype)
    if resampling == "systematic":
        places = (places + torch.arange(count, device=shares.device)) / count
    # Rounding may leave the last end below one.
    indices = torch.searchsorted(ends, places * ends[:, -1:], right=True)
    return indices.clamp(max=count - 1).T

"""A particle filter that runs both halves of a pair step by step."""

__all__ = ["ParticleFilter", "check_resampling"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.utils._pytree import tree_map

from tarspyro.arguments import check_choice, check_number
from tarspyro.infer.bounds.reductions import renyi_bound
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import PairError, name_of, trace_pair
from tarspyro.infer.weights import in_plates, weigh
from tarspyro.sequential import steps_of
from tarspyro.types import Program


def check_resampling(threshold: float, resampling: str) -> None:
    """Raises unless these are a particle filter's arguments."""
    check_number("threshold", threshold, 0, 1)
    check_choice("resampling", resampling, ("multinomial", "systematic"))


class ParticleFilter:
    r"""K particles for each sequence, proposed by the guide, weighted by the pair, and
    resampled where they degenerate.

    .. math:: w_{tk} = w_{t-1,k} \frac{p(x_t, z_{tk} \mid \text{past}_k)}{q(z_{tk} \mid x, \text{past}_k)}, \qquad
              \hat p(x_{0:t}) = \prod_{\text{blocks}} \frac{1}{K} \sum_k w_k

    Where the effective sample size of a sequence, :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, is
    below ``threshold * K``, its particles are drawn anew in proportion to their weights, which
    are one again: a block ends. The estimate of p(x) is unbiased. No value is read back to the
    host.

    Arguments:
        model: The model, a ``sequential`` program.
        guide: The guide, likewise.
        args: What both are called with.
        kwargs: More of it.
        num_particles: K.
        threshold: The share of K; 0 never resamples.
        resampling: ``"multinomial"``, or ``"systematic"``, with less noise.
        structure: That of the pair.
        model_kwargs: What the model alone is called with, and goes on by when the guide has
            finished.

    Raises:
        PairError: If the pair is not sequential, or has no weights for each sequence.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        num_particles: int,
        threshold: float,
        resampling: str,
        structure: Structure,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.num_particles, self.threshold, self.resampling = (
            num_particles,
            threshold,
            resampling,
        )
        self.program, self.structure, self.goes_on = model, structure, model_kwargs is not None
        self.model, self.guide = (
            _Half(model, args, {**kwargs, **(model_kwargs or {})}),
            _Half(guide, args, kwargs),
        )
        self._shape: tuple[int, ...] = ()  # of the weights, with one dimension for each plate
        self.finished: Any = (
            0.0  # the log-likelihood of the blocks that have ended, one for each sequence
        )
        self.log_weights: Any = None  # (K, sequences), since the last block ended
        self.scale: Any = 1.0
        self.scores: list[
            tuple[Tensor, Any]
        ] = []  # of draws, and the log-likelihood before them

    @property
    def log_likelihood(self) -> Any:
        """The logarithm of the estimate of p(x) so far, one for each sequence."""
        return self.finished + (
            0.0 if self.log_weights is None else renyi_bound(self.log_weights, 0.0)
        )

    def run(self, after_step: Callable[[Trace, Trace], object] = lambda *traces: None) -> None:
        """Runs to the guide's end, resampling between the steps.

        Arguments:
            after_step: What to do with the traces of each step, before it resamples.
        """
        while not self.guide.finished:
            self.resample()
            after_step(*self.step())
            if self.model.finished != self.guide.finished and not (
                self.guide.finished and self.goes_on
            ):
                raise PairError(
                    f"{self.model.name} and {self.guide.name} do not yield the same number of"
                    " times."
                )

    def step(self) -> tuple[Trace, Trace]:
        """Runs both halves to the beginning of their next step, and weighs what they drew;
        returns both traces.
        """
        halves = in_plates(self.model, self.guide, 1, self.num_particles, self.structure)
        traces = trace_pair(*halves, (), {})
        weights = weigh(self.program, *traces, self.structure)
        if weights.shared is not None or len(weights.groups) > 1:
            raise PairError(
                f"{name_of(self.program)} has latent variables outside of the plate of its"
                " sequences."
            )
        for group in weights.groups:
            if group.score is not None:
                before = self.log_likelihood
                self.scores.append(
                    (group.score[0], before.detach() if torch.is_tensor(before) else before)
                )
            steps = group.log_weights[0]
            self.log_weights = steps if self.log_weights is None else self.log_weights + steps
            self._shape, self.scale = group.shape[1:], group.scale
        for half in (self.model, self.guide):
            half.spread(self.num_particles, self._shape)
        return traces

    def resample(self, everywhere: bool = False) -> None:
        """Resamples where the effective sample size is below the threshold, or everywhere."""
        if (
            self.log_weights is None
            or self.num_particles == 1
            or (self.threshold == 0 and not everywhere)
        ):
            return
        shares = torch.softmax(self.log_weights.detach(), 0)
        chosen = (
            1 / shares.square().sum(0) < self.threshold * self.num_particles
        ) | everywhere
        kept = torch.arange(self.num_particles, device=shares.device).unsqueeze(1)
        ancestors = torch.where(chosen, _ancestors(shares, self.resampling), kept).reshape(
            self._shape
        )
        self.finished = torch.where(chosen, self.log_likelihood, self.finished)
        self.log_weights = torch.where(chosen, 0.0, self.log_weights)
        for half in (self.model, self.guide):
            half.take(ancestors)

    def continuation(self) -> Trace:
        """Runs the model alone to the beginning of its next step; returns its trace."""
        model, _ = in_plates(self.model, self.guide, 1, self.num_particles, self.structure)
        return poutine.trace(model).get_trace()


class _Half:
    """One half between two of its steps: called, it runs the next one."""

    def __init__(
        self, program: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        begin = steps_of(program)
        if begin is None:
            raise PairError(
                f"{name_of(program)} does not run step by step: decorate its forward, or the"
                " function, with tarspyro.sequential, and begin each step with state = yield"
                " state."
            )
        self.name, self.steps, self.state = name_of(program), begin(*args, **kwargs), None
        self.finished = False

    def __call__(self) -> None:
        contexts = len(_PYRO_STACK)
        try:
            self.state = self.steps.send(self.state)
        except StopIteration:
            self.finished = True
        if len(_PYRO_STACK) != contexts:
            self.steps.close()  # which leaves the context
            raise PairError(
                f"{self.name} yields inside of a plate or another context: leave it before the"
                " yield."
            )

    def spread(self, num_particles: int, shape: tuple[int, ...]) -> None:
        """Gives the state one row a particle, if nothing has been drawn; else makes sure that
        it has.
        """

        def rows(part: Any) -> Any:
            if not torch.is_tensor(part):
                return part
            if not shape:
                return part.expand(num_particles, *part.shape)
            if part.dim() < len(shape) or len(part) != num_particles:
                raise PairError(
                    f"{self.name} yields a state of shape {tuple(part.shape)}, which is not"
                    f" one for each of {num_particles} particles: its first dimensions are"
                    " those of the draws."
                )
            return part

        self.state = tree_map(rows, self.state)

    def take(self, ancestors: Tensor) -> None:
        """Replaces the state of each particle by that of its ancestor."""

        def chosen(part: Any) -> Any:
            if not torch.is_tensor(part):
                return part
            index = ancestors.reshape(ancestors.shape + (1,) * (part.dim() - ancestors.dim()))
            return torch.take_along_dim(part, index, 0)

        self.state = tree_map(chosen, self.state)


def _ancestors(shares: Tensor, resampling: str) -> Tensor:
    """Indices of particles, as many as there are, drawn in proportion to their shares: shape
    (K, sequences).
    """
    count, num = shares.shape
    ends = shares.cumsum(0).T.contiguous()
    places = torch.rand(
        num,
        1 if resampling == "systematic" else count,
        device=shares.device,
        dtype=shares.dtype,
    )
    if resampling == "systematic":
        places = (places + torch.arange(count, device=shares.device)) / count
    # Rounding may leave the last end below one.
    return torch.searchsorted(ends, places * ends[:, -1:], right=True).clamp(max=count - 1).T

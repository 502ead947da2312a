"""The base class of all bounds: the interface of ``pyro.infer.ELBO``, by one loss."""

__all__ = ["Bound"]

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro.infer
import torch
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from pyro.util import warn_if_nan
from torch import Tensor

from tarspyro.arguments import as_count, check_names, check_number
from tarspyro.infer.pairs import FIX_OF_MASKS, about_masks, structure_of
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import name_of, trace_pair
from tarspyro.types import Program

# The names that papers and other libraries give to arguments of bounds.
_ELSEWHERE = {
    **dict.fromkeys(
        ["k", "num_samples", "n_samples", "samples", "particles", "num_importance_samples"],
        "num_particles",
    ),
    **dict.fromkeys(["kl_weight", "kl_coef", "kld_weight"], "beta"),
}


class Bound(pyro.infer.ELBO):
    """A bound on log p(x), whose negative is the loss of a model and its guide.

    ``pyro.infer.SVI``, torch optimizers and ``tarspyro.fit`` minimize it. Subclasses define
    ``loss_and_terms``. As with Pyro's bounds, the loss is in nats, summed over the data points
    and multiplied by the plates' scales.

    Arguments:
        num_particles: The number of draws from the guide.
        max_plate_nesting: How many dimensions the pair's plates take; found by a run without
            side effects if not given.
        vectorize_particles: False runs the pair once for each particle, for programs that
            cannot take a plate of particles.
        retain_graph: Passed on to ``backward`` by ``loss_and_grads``.

    Attributes:
        adjustable: The names of the attributes that may change from step to step, and may be
            tensors.
        observed: Whether the model has to observe something. Without data, minus an ELBO is the
            KL divergence of two guides.
        whole: Whether the bound is linear in the log weights, so that it needs no weights of
            single data points.
        programs: The programs that the loss runs beside the pair, such as the networks of a
            game.
        parameters: The parameters that the loss is minimized in; None for all that it depends
            on.

    Raises:
        TypeError: If ``num_particles`` is not a whole number.
        ValueError: If an argument is out of range.

    Example:
        >>> import pyro.distributions as dist
        >>> class Reconstruction(Bound):
        ...     def loss_and_terms(self, model, guide, *args, **kwargs):
        ...         model_trace, _ = trace_pair(model, guide, args, kwargs)
        ...         site = model_trace.nodes["x"]
        ...         return -site["fn"].log_prob(site["value"]).sum(), {}
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0).expand([2]).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Delta(x.mean()))
        >>> loss = Reconstruction(num_particles=1).loss(model, guide, torch.zeros(2))
        >>> round(loss, 4)  # log(2 pi)
        1.8379
    """

    adjustable: tuple[str, ...] = ()
    observed: bool = True
    whole: bool = True
    programs: tuple[Program, ...] = ()
    parameters: list[Tensor] | None = None

    def __new__(cls, *args: object, **options: object) -> "Bound":
        """Returns a new bound; a misspelt argument gets a sentence with the right one."""
        check_names(cls, options, _ELSEWHERE, passes_on=True)
        return super().__new__(cls)

    def __init__(
        self,
        num_particles: int,
        *,
        max_plate_nesting: int | float = math.inf,
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
    ) -> None:
        num_particles = as_count("num_particles", num_particles)
        check_number("max_plate_nesting", max_plate_nesting, 0)
        super().__init__(  # type: ignore[no-untyped-call]
            num_particles=num_particles, retain_graph=retain_graph
        )
        # Pyro's class counts the plate of particles too; here it is the user's plates alone.
        self.max_plate_nesting = max_plate_nesting
        self.vectorize_particles = vectorize_particles
        self._found: dict[tuple[object, ...], Structure] = {}

    def loss_and_terms(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and the terms that ``fit`` records beside it.

        The terms are detached, and summed over the data.
        """
        raise NotImplementedError

    def loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """Returns minus the bound, a float, without gradients."""
        with torch.no_grad():
            loss = torch_item(self.differentiable_loss(model, guide, *args, **kwargs))
        warn_if_nan(loss, "loss")
        return float(loss)

    def loss_and_grads(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> float:
        """Computes the gradients of minus the bound; returns minus the bound, a float.

        ``SVI.step`` calls it.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        value = torch_item(loss)
        warn_if_nan(value, "loss")
        return float(value)

    def differentiable_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> Tensor:
        """Returns minus the bound, a tensor whose gradient is an unbiased estimate of the
        bound's.
        """
        return self.loss_and_terms(model, guide, *args, **kwargs)[0]

    @property
    def settings(self) -> Any:
        """The object whose attributes, such as the adjustable ones, decide the loss."""
        return self

    def prepare(
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> None:
        """Does in a run of its own what the loss does only once for a pair.

        ``Compiled`` calls it before it records a step.
        """
        self.structure(model, guide, *args, **kwargs)

    def structure(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> Structure:
        """Returns the sites of each data point; printed, it names the data that have a weight.

        It is found by a few runs without side effects, once for each pair, mode (training or
        evaluation) and shapes of the data.

        Raises:
            PairError: If the sites of model and guide do not match.
        """
        key: list[object] = [
            model,
            guide,
            getattr(model, "training", None),
            getattr(guide, "training", None),
        ]
        for value in args:
            key.append(_signature(value))
        for name, value in kwargs.items():
            key.append((name, _signature(value)))

        known = tuple(key)
        structure = self._found.get(known)
        if structure is None:
            if any(other[:2] != known[:2] for other in self._found):
                self._found.clear()  # These are of another pair.
            structure = self._find_structure(model, guide, args, kwargs)
            self._found[known] = structure
        if self.max_plate_nesting != math.inf:
            structure = replace(structure, nesting=int(self.max_plate_nesting))
        return structure

    def _find_structure(
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> Structure:
        structure = structure_of(
            model,
            guide,
            args,
            kwargs,
            particles=self.num_particles,
            groups=getattr(self, "num_groups", 1),
            vectorize=self.vectorize_particles,
            whole=self.whole,
            observed=self.observed,
        )
        self._check(model, guide, structure)
        if structure.vectorized is False and self.vectorize_particles:
            warnings.warn(
                f"In a plate of particles, {name_of(model)} or {name_of(guide)} raises an error"
                " or gives other densities than particles have alone, so particles run one"
                " after another, as with vectorize_particles=False.",
                stacklevel=2,
            )
        if structure.unmatched:
            warnings.warn(
                f"{about_masks(model, structure)}, so {type(self).__name__} is no bound on log"
                f" p(x): {FIX_OF_MASKS}.",
                stacklevel=2,
            )
        return structure

    def _check(self, model: Program, guide: Program, structure: Structure) -> None:
        """Raises a ``PairError`` if the bound does not take pairs of this structure."""

    def _get_trace(
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> tuple[Trace, Trace]:
        return trace_pair(model, guide, args, kwargs)


def _signature(value: object) -> object:
    """Returns the part of an argument that the structure of a pair may depend on.

    For a tensor, this is its shape. For a real number, it is whether the number is 0 or 1:
    others may be annealed, and finding a new structure takes longer than a step.
    """
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    if isinstance(value, Mapping):
        return tuple((key, _signature(part)) for key, part in value.items())
    if isinstance(value, (bool, int, str, type(None))):
        return value
    if isinstance(value, float) and value in (0.0, 1.0):
        return value
    return type(value)

"""What all bounds have in common: the interface of ``pyro.infer.ELBO``, in one loss."""

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

from tarspyro.arguments import as_count, check_number
from tarspyro.infer.pairs import structure_of
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import name_of, trace_pair
from tarspyro.types import Program


class Bound(pyro.infer.ELBO):
    """A bound on log p(x) whose negative ``pyro.infer.SVI``, torch optimizers and
    ``tarspyro.fit`` minimize.

    Subclasses define ``loss_and_terms``. Like Pyro's bounds they return minus the bound in
    nats, summed over the data points and multiplied by the plates' scales.

    Attributes:
        adjustable: The numbers that may change from step to step, and be tensors.
        observed: Whether the model has to observe something; without data, minus an ELBO is a
            KL of two guides.
        whole: Whether the bound is linear in the log weights, so that it needs no weight of
            single data points.
        programs: What the loss runs beside the pair, such as a game with its networks.
        parameters: What the loss is minimized in; None for all that it depends on.
    """

    adjustable: tuple[str, ...] = ()
    observed: bool = True
    whole: bool = True
    programs: tuple[Program, ...] = ()
    parameters: list[Tensor] | None = None

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
        super().__init__(num_particles=num_particles, retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        # The base class counts the plate of particles in; here it is the user's plates alone.
        self.vectorize_particles, self.max_plate_nesting = (
            vectorize_particles,
            max_plate_nesting,
        )
        self._found: dict[Any, Structure] = {}

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and what ``fit`` writes down beside it, detached and summed over
        the data.
        """
        raise NotImplementedError

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Returns minus the bound, a float, without gradients."""
        with torch.no_grad():
            loss = torch_item(self.differentiable_loss(model, guide, *args, **kwargs))
        warn_if_nan(loss, "loss")
        return float(loss)

    def loss_and_grads(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> float:
        """Computes the gradients of minus the bound, as ``SVI.step`` asks; returns minus the
        bound, a float.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        value = torch_item(loss)
        warn_if_nan(value, "loss")
        return float(value)

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the bound, a tensor whose gradient is an unbiased estimate of the
        bound's.
        """
        return self.loss_and_terms(model, guide, *args, **kwargs)[0]

    @property
    def settings(self) -> Any:
        """The object whose attributes decide what the loss is: the adjustable numbers and all
        others.
        """
        return self

    def prepare(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Does what the loss does only once for a pair, in a run of its own, before a step is
        recorded.
        """
        self._structure(model, guide, args, kwargs)

    def structure(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Structure:
        """Returns which sites belong to which data points; printed, it says what has a weight.

        Found by a few runs without side effects, once for each pair and shapes of the data.

        Raises:
            PairError: If the halves do not match.
        """
        return self._structure(model, guide, args, kwargs)

    def _structure(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Structure:
        # What a pair samples may depend on the shapes of its data, and on which of its
        # arguments it is given.
        given = [_kind(value) for value in args]
        modes = [getattr(program, "training", None) for program in (model, guide)]
        key = (
            model,
            guide,
            *modes,
            *given,
            *((name, _kind(value)) for name, value in kwargs.items()),
        )
        if key not in self._found:
            if any(other[:2] != key[:2] for other in self._found):
                self._found.clear()  # another pair
            self._found[key] = self._find(model, guide, args, kwargs)
        structure = self._found[key]
        if self.max_plate_nesting != math.inf:
            structure = replace(structure, nesting=int(self.max_plate_nesting))
        return structure

    def _find(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
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
        if structure.vectorized is False and self.vectorize_particles:
            warnings.warn(
                f"{name_of(model)} does not give particles together, in a plate of their own,"
                " the densities that each has alone: they run one after another, as with"
                " vectorize_particles=False.",
                stacklevel=2,
            )
        return structure

    def _get_trace(
        self, model: Program, guide: Program, args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        return trace_pair(model, guide, args, kwargs)


def _kind(value: Any) -> Any:
    """What the structure of a pair may depend on: of tensors the shape, of real numbers
    whether they are 0 or 1.

    Other real numbers may be annealed, and a new structure at every step would take longer
    than the step.
    """
    if torch.is_tensor(value):
        return value.shape
    if isinstance(value, (list, tuple)):
        return tuple(map(_kind, value))
    if isinstance(value, Mapping):
        return tuple((key, _kind(part)) for key, part in value.items())
    if isinstance(value, (bool, int, str, type(None))) or (
        isinstance(value, float) and value in (0.0, 1.0)
    ):
        return value
    return type(value)

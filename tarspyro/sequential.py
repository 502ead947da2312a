"""Programs over sequences: loops over time that can also be run step by step."""

__all__ = [
    "sequence_plate",
    "sequence_sizes",
    "sequential",
    "stacked",
    "states_of",
    "steps_of",
]

import contextlib
import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from tarspyro.arguments import format_value
from tarspyro.modules import StochasticModule

Steps = Callable[..., Generator[Any, Any, Any]]


def sequential(program: Steps) -> Callable[..., Any]:
    """Makes a program of a generator, which says by ``yield`` where a step begins and what the
    past hands over to it.

    At the beginning of each step it yields its state, a tensor or a nest of tuples of tensors,
    and goes on with the state that it gets. Called as a program it gets the same one, and
    might as well have no ``yield``. What runs it step by step, as ``FIVO`` does, may hand it
    the state of other particles.

    The state's tensors have the shape ``(*particles, *plates, *event)`` and hold all that
    later steps know of earlier draws. A plate is entered anew in each step, so that none is
    open at a ``yield``.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> @sequential
        ... def walk(x):
        ...     data, z = pyro.plate("data", len(x)), torch.zeros(len(x))
        ...     for t in range(x.shape[1]):
        ...         z = yield z
        ...         with data:
        ...             z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
        ...             pyro.sample(f"x_{t}", dist.Normal(z, 0.5), obs=x[:, t])
        ...     return z
        >>> walk(torch.zeros(3, 10)).shape
        torch.Size([3])
    """

    @functools.wraps(program)
    def run(*args: Any, **kwargs: Any) -> Any:
        steps, state = program(*args, **kwargs), None
        while True:
            try:
                state = steps.send(state)
            except StopIteration as end:
                return end.value

    run.steps = program  # type: ignore[attr-defined]
    return run


def steps_of(program: Callable[..., Any]) -> Steps | None:
    """Returns what runs a ``sequential`` program step by step, called with its arguments; None
    for other programs.
    """
    function = program.forward if isinstance(program, nn.Module) else program
    steps: Steps | None = getattr(function, "steps", None)
    if steps is None:
        return None
    bound = (
        functools.partial(steps, function.__self__) if inspect.ismethod(function) else steps
    )
    if not isinstance(program, StochasticModule):
        return bound

    def registered(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        program.register()
        return bound(*args, **kwargs)

    return registered


def states_of(program: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """Runs a ``sequential`` program with its arguments; returns the states that it yields.

    Raises:
        TypeError: If the program is not sequential.
    """
    steps = steps_of(program)
    if steps is None:
        raise TypeError(
            "program must be sequential, decorated with tarspyro.sequential, got"
            f" {format_value(program)}."
        )
    states: list[Any] = []
    run, state = steps(*args, **kwargs), None
    with contextlib.suppress(StopIteration):
        while True:
            state = run.send(state)
            states.append(state)
    return states


def sequence_plate(size: int, lengths: Tensor | None = None) -> Callable[[int], Any]:
    """Returns the plate ``data`` of so many sequences, a function of the step: those that have
    ended count for nothing.

    Raises:
        ValueError: If ``lengths`` are not positive integers, one for each sequence.
    """
    if lengths is not None and (lengths.shape != (size,) or lengths.is_floating_point()):
        raise ValueError(
            f"lengths must be integers of shape ({size},), one for each sequence, got"
            f" {lengths.dtype} of shape {tuple(lengths.shape)}."
        )
    # Looking at values makes a device wait, so it belongs to validation.
    if lengths is not None and is_validation_enabled() and bool((lengths < 1).any()):
        raise ValueError(f"lengths must be at least 1, got {int(lengths.min())}.")
    plate = pyro.plate("data", size)

    @contextlib.contextmanager
    def at(t: int) -> Iterator[None]:
        inside: Any = contextlib.nullcontext()
        if lengths is not None:
            inside = poutine.mask(mask=t < lengths)  # type: ignore[call-overload]
        with plate, inside:
            yield

    return at


def sequence_sizes(
    x: Tensor | None, batch_size: int, length: int | None
) -> tuple[int, int, int]:
    """Returns how many sequences there are, of how many steps x is known, and how many steps
    there are in all.

    Raises:
        ValueError: If there is neither x nor a length.
    """
    if x is not None:
        return len(x), x.shape[1], x.shape[1] if length is None else length
    if length is None:
        raise ValueError(
            "length must be given to generate without x: how many steps, such as length=100."
        )
    return batch_size, 0, length


def stacked(steps: Sequence[Tensor], event_dim: int) -> Tensor:
    """Returns the steps of sequences as one tensor, with the time before the dimensions of an
    event.
    """
    together = torch.broadcast_tensors(*steps)
    return torch.stack(together, together[0].dim() - event_dim)

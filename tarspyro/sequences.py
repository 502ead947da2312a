"""Sequential programs: loops over time that can also run step by step."""

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
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from tarspyro.arguments import as_count, check_lengths, format_value
from tarspyro.modules import StochasticModule

# A generator function. It yields the state of each step, and is sent the state to go on with.
Steps = Callable[..., Generator[Any, Any, Any]]

_Result = TypeVar("_Result")


def sequential(
    program: Callable[..., Generator[Any, Any, _Result]],
) -> Callable[..., _Result]:
    """Turns a generator into a Pyro program; each ``yield`` passes the state to the next step.

    At the beginning of each step the generator yields its state, a tensor or a nest of tuples of
    tensors, and goes on with the state that ``yield`` returns. In a normal call this is the
    same state. ``FIVO`` runs the program step by step, and may return the state of other
    particles.

    The state's tensors have the shape ``(*particles, *plates, *event)``. Later steps must know
    earlier draws by the state alone. Make each plate once, and enter it anew in each step,
    because none may be open at a ``yield``.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> @sequential
        ... def walk(x):
        ...     data = pyro.plate("data", len(x))
        ...     z = torch.zeros(len(x))
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
    def run(*args: object, **kwargs: object) -> _Result:
        steps = program(*args, **kwargs)
        state = None
        while True:
            try:
                state = steps.send(state)
            except StopIteration as end:
                result: _Result = end.value
                return result

    run.steps = program  # type: ignore[attr-defined]
    return run


def steps_of(program: Callable[..., Any]) -> Steps | None:
    """Returns the generator function of a ``sequential`` program; None for other programs.

    It is called with the program's arguments.
    """
    function = program.forward if isinstance(program, nn.Module) else program
    steps: Steps | None = getattr(function, "steps", None)
    if steps is None:
        return None
    bound = steps
    if inspect.ismethod(function):
        bound = functools.partial(steps, function.__self__)
    if not isinstance(program, StochasticModule):
        return bound

    def registered(*args: object, **kwargs: object) -> Generator[Any, Any, Any]:
        program.register()
        return bound(*args, **kwargs)

    return registered


def states_of(program: Callable[..., Any], *args: object, **kwargs: object) -> list[Any]:
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
    run = steps(*args, **kwargs)
    state = None
    with contextlib.suppress(StopIteration):
        while True:
            state = run.send(state)
            states.append(state)
    return states


def sequence_plate(
    size: int, lengths: Tensor | None = None, num_steps: int | None = None
) -> Callable[[int], AbstractContextManager[None]]:
    """Returns the plate ``data`` of some sequences, as a function of the step.

    The plate masks the sequences that have ended before the step.

    Arguments:
        size: The number of sequences.
        lengths: How many steps each sequence has; all if not given.
        num_steps: How many steps a sequence can have at most, to check ``lengths``.

    Raises:
        ValueError: If ``lengths`` are not positive integers, one for each sequence, of
            at most ``num_steps``.
    """
    if lengths is not None:
        check_lengths(lengths, size, num_steps)
    plate = pyro.plate("data", size)

    @contextlib.contextmanager
    def at_step(t: int) -> Iterator[None]:
        masked: AbstractContextManager[object] = contextlib.nullcontext()
        if lengths is not None:
            masked = poutine.mask(mask=t < lengths)  # type: ignore[call-overload]
        with plate, masked:
            yield

    return at_step


def sequence_sizes(
    x: Tensor | None, batch_size: int, length: int | None
) -> tuple[int, int, int]:
    """Returns the number of sequences, the number of steps in x, and the number of all steps.

    Arguments:
        x: The data; None to generate.
        batch_size: The number of sequences to generate.
        length: The number of all steps; those of x if not given.

    Raises:
        ValueError: If neither ``x`` nor ``length`` is given, or there are no steps.
    """
    if length is not None:
        length = as_count("length", length)
    if x is not None:
        if x.shape[1] == 0:
            raise ValueError(
                f"x must have at least one step, in dimension 1 of {tuple(x.shape)}, got none."
            )
        return len(x), x.shape[1], x.shape[1] if length is None else length
    if length is None:
        raise ValueError(
            "length must be given to generate without x: the number of steps, such as length=100."
        )
    return batch_size, 0, length


def stacked(steps: Sequence[Tensor], event_dim: int) -> Tensor:
    """Stacks the steps of sequences to one tensor.

    The dimension of time comes before the last ``event_dim`` dimensions.
    """
    together = torch.broadcast_tensors(*steps)
    return torch.stack(together, together[0].dim() - event_dim)

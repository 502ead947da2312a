"""Leading dimensions (particles, plates, time) folded into one batch dimension for networks."""

__all__ = [
    "ELEMENTWISE",
    "as_events",
    "event_ndims",
    "event_shapes",
    "fold",
    "unfold",
    "unfold_distribution",
]

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from pyro.distributions import Independent as PyroIndependent
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Independent

from tarspyro.arguments import check_module, format_value
from tarspyro.scopes import evaluating, preserved_rng

# The event of an input, which is one data point in it: its shape, or its number of dimensions.
Event: TypeAlias = Sequence[int] | int

# Where a network keeps how many dimensions its events have, once a program has told.
_LEARNED = "_event_ndims"

# The name that Pyro's bounds, and ours, give the plate of particles.
_PARTICLES = "num_particles_vectorized"

# The modules of torch whose layers keep every shape, and the number of features.
ELEMENTWISE = ("torch.nn.modules.activation", "torch.nn.modules.dropout")

# How many dimensions an event has for a layer.
_NDIMS: tuple[tuple[type | tuple[type, ...], int], ...] = (
    (nn.modules.batchnorm.BatchNorm1d, 1),
    (nn.modules.batchnorm.BatchNorm2d, 3),
    ((nn.Linear, nn.Bilinear, nn.RNNCellBase), 1),
    (nn.Embedding, 0),
)


def event_ndims(network: nn.Module, *, real: bool = False) -> int | None:
    """Returns how many dimensions an event has for a network, according to its first layer.

    It is None if the first layer takes inputs of any rank, or is of an unknown kind. With
    ``real`` it is the first layer that takes real numbers: no embedding, which is for a label
    beside them.

    Raises:
        TypeError: If ``network`` is not a module.

    Example:
        >>> event_ndims(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten()))
        3
    """
    check_module("network", network)
    for layer in network.modules():
        shapes = getattr(layer, "in_shapes", None)
        if shapes is not None:
            return len(shapes[0])
        if next(layer.children(), None) is not None or type(layer).__module__ in ELEMENTWISE:
            continue
        if real and isinstance(layer, nn.Embedding):
            continue
        if isinstance(layer, nn.modules.conv._ConvNd):
            # The kernel, because a lazy layer has no weight yet.
            return len(layer.kernel_size) + 1
        for kinds, ndims in _NDIMS:
            if isinstance(layer, kinds):
                return ndims
        return None
    return None


def event_shapes(network: nn.Module, inputs: Sequence[Tensor]) -> Sequence[Event]:
    """Returns the event of each of a network's inputs.

    They are the network's ``in_shapes``, if it has this attribute. Else their numbers of
    dimensions are found in a run of a program: those right of the plates. The network keeps
    them for calls in which particles stand before the plates, and for calls outside a program.
    Before such a run they follow from the first layer. If that layer takes inputs of any rank,
    the first input has one dimension for the batch. The events of the other inputs are numbers,
    such as labels, if they have the shape of the plates or of the batch, and else vectors.

    Raises:
        TypeError: If an input is not a tensor.
    """
    shapes: Sequence[Event] | None = getattr(network, "in_shapes", None)
    if shapes is not None:
        return shapes
    for value in inputs:
        if not isinstance(value, Tensor):
            raise _error_of_type(value)
    learned: list[int] | None = network.__dict__.get(_LEARNED)
    plates = _sizes_of_plates()
    if plates is not None:
        ranks = _ranks(network, inputs, plates, learned)
        if ranks == learned:
            return learned
        tells = ranks[0] >= (event_ndims(network) or 0) or _runs(network, inputs, ranks)
        if tells and not _replays_enumerated():
            network.__dict__[_LEARNED] = ranks
            return ranks
    if learned is not None and len(learned) == len(inputs):
        return learned
    ndims = event_ndims(network, real=inputs[0].is_floating_point())
    first = inputs[0].dim() - 1 if ndims is None else ndims
    lead = inputs[0].shape[: max(inputs[0].dim() - first, 0)]
    return [first, *_ranks(network, inputs, lead, None)[1:]]


def _ranks(
    network: nn.Module, inputs: Sequence[Tensor], lead: Sequence[int], known: list[int] | None
) -> list[int]:
    """Returns how many dimensions the event of each input has, right of some leading ones.

    A further input is a vector at least: one that no plate holds, such as global weights, has
    fewer dimensions. But it is a number of each data point, such as a label, if it has the
    shape of the plates and the network takes it. A vector may by chance be as long as a batch.

    Arguments:
        network: The network.
        inputs: Its inputs.
        lead: The leading shape, with -1 for an unknown size.
        known: What an earlier batch has shown.
    """
    first, *others = [value.dim() - len(lead) for value in inputs]
    vectors = [first, *(max(rank, 1) for rank in others)]
    numbers = list(vectors)
    for place, value in enumerate(inputs[1:], 1):
        if lead and value.dim() == len(lead):
            # A dimension of one is that of a plate, or of particles, which does not matter.
            sizes = zip(value.shape, lead, strict=True)
            if all(size == 1 or own in (size, -1) for size, own in sizes):
                numbers[place] = 0
    if numbers == vectors or known == vectors:
        return vectors
    return numbers if known == numbers or _runs(network, inputs, numbers) else vectors


def _runs(network: nn.Module, inputs: Sequence[Tensor], ranks: Sequence[int]) -> bool:
    """Whether a network runs on events of some numbers of dimensions.

    These may be fewer than its first layer takes, because it adds them itself, such as a
    decoder that makes an image of one pixel of a vector.
    """
    with torch.no_grad(), evaluating(network), preserved_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network(*fold(inputs, ranks)[0])
        except Exception:  # whatever a network raises for inputs that it does not take
            return False
    return True


def _replays_enumerated() -> bool:
    """Whether the running program gets values that a guide has enumerated."""
    return any(
        site["type"] == "sample" and (site["infer"] or {}).get("_enumerate_dim") is not None
        for handler in _PYRO_STACK
        if isinstance(handler, ReplayMessenger) and handler.trace is not None
        for site in handler.trace.nodes.values()
    )


def _sizes_of_plates() -> list[int] | None:
    """Returns the shape of the plates of the running program, -1 for a plate of any size.

    None outside a program or its plates, and where particles or enumerated values have
    dimensions of their own.
    """
    sizes: dict[int, int] = {}
    for handler in _PYRO_STACK:
        if isinstance(handler, EnumMessenger):
            return None
        if isinstance(handler, IndepMessenger) and handler.dim is not None:
            if handler.name == _PARTICLES:
                return None
            sizes[handler.dim] = handler.size
    return [sizes.get(dim, 1) for dim in range(min(sizes), 0)] if sizes else None


def fold(inputs: Sequence[Tensor], shapes: Sequence[Event]) -> tuple[list[Tensor], Size]:
    r"""Folds the leading dimensions of the inputs into one batch dimension.

    Arguments:
        inputs: Tensors of shapes :math:`(*B_i, *E_i)`, where the leading shapes :math:`B_i`
            broadcast.
        shapes: For each input the event shape :math:`E_i`, or its number of dimensions. If the
            shape is given, the input may also hold flattened events.

    Returns:
        The inputs with shapes :math:`(N, *E_i)`, and the leading shape :math:`B` with
        :math:`N` elements.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If an input does not end in its event shape, or holds integers where the
            shape is not ``()``, or the leading shapes do not broadcast.

    Example:
        >>> (flat,), lead = fold([torch.zeros(5, 100, 784)], [(1, 28, 28)])
        >>> flat.shape, lead
        (torch.Size([500, 1, 28, 28]), torch.Size([5, 100]))
    """
    events = as_events(inputs, shapes)
    value, ndims = events[0]
    lead = value.shape[: value.dim() - ndims]
    if len(events) > 1:
        lead = _common_lead(inputs, events)

    folded = []
    for value, ndims in events:
        split = value.dim() - ndims
        if split != 1 or value.shape[:1] != lead:
            event = value.shape[split:]
            value = value.expand(lead + event).reshape((-1,) + event)
        folded.append(value)
    return folded, lead


def _common_lead(inputs: Sequence[Tensor], events: Sequence[tuple[Tensor, int]]) -> Size:
    """Returns the shape that the leading shapes of the inputs broadcast to."""
    leads = [value.shape[: value.dim() - ndims] for value, ndims in events]
    if all(lead == leads[0] for lead in leads):  # torch takes longer to find it
        return leads[0]
    try:
        return Size(torch.broadcast_shapes(*leads))
    except RuntimeError:
        given = [tuple(value.shape) for value in inputs]
        raise ValueError(
            f"The leading dimensions of the network's inputs do not broadcast, got {given}."
        ) from None


def unfold(output: Tensor, lead: Size) -> Tensor:
    """Gives a network's output the leading dimensions that ``fold`` has folded."""
    return output if len(lead) == 1 else output.reshape(lead + output.shape[1:])


def unfold_distribution(distribution: Distribution, lead: Size) -> Distribution:
    """Gives a distribution of a folded batch the leading dimensions back.

    Parameters are unfolded, and settings such as a number of levels stay as they are.

    Raises:
        TypeError: If it does not keep the parameters that it was made of.
    """
    if len(lead) == 1:
        return distribution
    if isinstance(distribution, Independent):
        base = unfold_distribution(distribution.base_dist, lead)
        return PyroIndependent(base, distribution.reinterpreted_batch_ndims)
    family: Any = type(distribution)
    kept = {
        name: unfold(vars(distribution)[name], lead)
        for name in distribution.arg_constraints
        if name in vars(distribution)
    }
    if not kept:
        raise TypeError(
            f"{type(distribution).__name__} does not keep its parameters: let the network return"
            " them, and give FromNetwork(network, distribution) a function that makes it."
        )
    settings = {
        name: vars(distribution)[name]
        for name in inspect.signature(family).parameters
        if name in vars(distribution) and name not in kept
    }
    unfolded: Distribution = family(**kept, **settings)
    return unfolded


def as_events(inputs: Sequence[Tensor], shapes: Sequence[Event]) -> list[tuple[Tensor, int]]:
    """Returns each input with the number of its event's dimensions.

    Flattened events get their shape.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If there are more or fewer inputs than shapes, or an input does not end in
            its event shape.
    """
    if len(inputs) != len(shapes):
        raise ValueError(f"The network takes {len(shapes)} input(s), got {len(inputs)}.")
    events = []
    for value, shape in zip(inputs, shapes, strict=True):
        events.append(_as_event(value, shape))
    return events


def _error_of_type(value: object) -> TypeError:
    fix = "make one of it, torch.as_tensor(...)"
    if isinstance(value, Distribution):
        fix = "draw from the distribution, pyro.sample(name, distribution)"
    return TypeError(f"The network takes tensors, got {format_value(value)}: {fix}.")


def _as_event(value: Tensor, shape: Event) -> tuple[Tensor, int]:
    if not isinstance(value, Tensor):
        raise _error_of_type(value)
    if isinstance(shape, int):
        if value.dim() < shape:
            raise ValueError(
                f"The network takes inputs whose last {shape} dimensions are a data point's, got"
                f" shape {tuple(value.shape)}: give it the attribute in_shapes, the shape of a"
                " data point for each input, if it takes others."
            )
        return value, shape

    shape = tuple(shape)
    if shape and not (value.is_floating_point() or value.is_complex()):
        # Labels of shape (10,) could be ten labels, or one vector of ten numbers.
        fix = "give labels as one-hot vectors, such as data.Split(x, y).one_hot()"
        if value.dim() > 1 and value.shape[value.dim() - len(shape) :] == shape:
            fix = "make real numbers of the data, such as x.float()"
        raise ValueError(
            f"The network takes inputs of shape {_starred(shape)} in floating point, got"
            f" {value.dtype} of shape {tuple(value.shape)}: {fix}."
        )
    if value.shape[value.dim() - len(shape) :] == shape:
        return value, len(shape)
    size = math.prod(shape)
    if value.dim() > 0 and value.shape[-1] == size:
        return value.reshape(value.shape[:-1] + shape), len(shape)
    flat = f" or {_starred((size,))}" if len(shape) > 1 else ""
    given = tuple(value.shape)
    # The first dimension is that of the data points, if there are any to spare.
    row = given[1:] if len(given) > len(shape) else given
    fix = f"make the network for inputs of shape {row}, or change the input"
    if shape == (1,) and len(given) == 1:
        fix = "give numbers a dimension of their own, x.unsqueeze(-1), or make an MLP(())"
    if len(row) > 1 and math.prod(row) == size:
        fix = f"flatten the input, .flatten(1), or make the network for {row}"
    raise ValueError(
        f"The network takes inputs of shape {_starred(shape)}{flat}, got {given}: {fix}."
    )


def _starred(shape: tuple[int, ...]) -> str:
    """Returns a shape as text, with any leading dimensions."""
    return f"(*, {', '.join(map(str, shape))})"

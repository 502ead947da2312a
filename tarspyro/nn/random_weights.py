"""Networks whose weights are a latent variable."""

__all__ = ["RandomWeights"]

import copy
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.parameter import UninitializedParameter

from tarspyro.arguments import check_module
from tarspyro.modules import Configurable
from tarspyro.nn.folding import as_events, event_shapes


class RandomWeights(Configurable):
    r"""A network as a function of its inputs and its weights, :math:`f(x; w)`, for weights
    that are drawn.

    Around a ``Conditional`` it is the conditional distribution :math:`p(y \mid x, w)`, around
    any other network its output. All weights together are one vector w. Both arguments may
    have leading dimensions, of shapes
    :math:`(*B, E)` and :math:`(*W, P)`, which broadcast: the result has the leading shape of
    both. A model draws w outside its plates, of shape (P,) or, inside a plate of K particles,
    (K, 1, P); the data has shape (N, E), and the result (K, N). All draws are computed at
    once, by ``torch.func.vmap``, which takes no layers that change as they run (batch
    normalization in training).

    The network is copied; its own weights are kept as ``initial`` and not trained. A learned
    constant of a ``Conditional`` (such as ``scale=nn.Parameter(...)``) is none of its weights,
    and is trained as ever.

    Arguments:
        network: A ``Conditional``, a ``Deterministic``, or any other ``torch.nn.Module`` that
            returns one tensor.

    Raises:
        TypeError: If ``network`` is not a module.
        ValueError: If it has no weights, or lazy ones; when called, if the weights have the
            wrong size.

    Attributes:
        num_weights: P.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> likelihood = RandomWeights(Conditional(dist.Normal, MLP(8, [50]), (), scale=0.1))
        >>> likelihood.num_weights
        501
        >>> likelihood(torch.zeros(32, 8), torch.zeros(100, 1, 501)).batch_shape
        torch.Size([100, 32])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        check_module("network", network)
        if any(
            isinstance(parameter, UninitializedParameter) for parameter in network.parameters()
        ):
            raise ValueError(
                "network has lazy layers, whose weights have no shapes yet: call it on data"
                " once before."
            )
        self.function = _Function(copy.deepcopy(network))
        self._shapes = _as_buffers(self.function)
        self.num_weights = sum(shape.numel() for shape in self._shapes.values())
        if not self.num_weights:
            raise ValueError(f"network has no weights: {network!r}.")

    @property
    def initial(self) -> Tensor:
        """The weights that the network had, a new tensor of shape (P,): where a guide may
        start.
        """
        return torch.cat([self.function.get_buffer(name).flatten() for name in self._shapes])

    def forward(self, *inputs: Tensor) -> Any:
        """Returns the distribution, or the output, given the inputs and the weights, which
        come last.
        """
        *values, weights = inputs
        if weights.shape[-1:] != (self.num_weights,):
            raise ValueError(
                f"weights must have shape (*, {self.num_weights}), got {tuple(weights.shape)}."
            )
        network: Any = self.function.network
        events = as_events(values, event_shapes(getattr(network, "trunk", network), values))
        lead = torch.broadcast_shapes(
            weights.shape[:-1], *(value.shape[: value.dim() - n] for value, n in events)
        )
        weights = _padded(weights, 1, lead)
        # First the dimensions along which the weights differ, which vmap takes together; then
        # the network's batch.
        order = sorted(range(len(lead)), key=lambda dim: weights.shape[dim] == 1)
        count = sum(size > 1 for size in weights.shape[:-1])
        draws, batch = (
            Size(lead[dim] for dim in order[:count]),
            Size(lead[dim] for dim in order[count:]),
        )

        def stacked(value: Tensor, ndims: int) -> tuple[Tensor, int | None]:
            value = _padded(value, ndims, lead)
            value = value.permute([*order, *range(len(lead), value.dim())])
            event = value.shape[len(lead) :]
            if value.shape[:count].numel() == 1:  # the same for all draws
                return (
                    value.expand(*value.shape[:count], *batch, *event).reshape(
                        batch.numel(), *event
                    ),
                    None,
                )
            return (
                value.expand(*draws, *batch, *event).reshape(
                    draws.numel(), batch.numel(), *event
                ),
                0,
            )

        def restored(output: Tensor) -> Tensor:
            output = output.reshape(draws + batch + output.shape[2:])
            back = sorted(range(len(lead)), key=order.__getitem__)
            return output.permute([*back, *range(len(lead), output.dim())])

        arguments, dims = zip(*(stacked(value, ndims) for value, ndims in events), strict=True)
        flat = weights.permute([*order, -1]).reshape(draws.numel(), self.num_weights)
        parts = flat.split([shape.numel() for shape in self._shapes.values()], 1)
        named = {
            name: part.reshape(len(part), *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        # Dropout, if any, differs between the draws, as it does between the rows.
        outputs = vmap(functional_call, (None, 0, dims), randomness="different")(
            self.function, named, arguments
        )
        if not self.function.is_conditional:
            return restored(outputs)
        return network.distribution(
            {name: restored(output) for name, output in outputs.items()}
        )

    @property
    def headline(self) -> str:
        """The distribution or the class of the network, and the number of weights."""
        network = self.function.network
        return (
            f"{getattr(network, 'headline', type(network).__name__)}, {self.num_weights}"
            " random weights"
        )

    def __repr__(self) -> str:
        return f"{self.function.network!r}, {self.num_weights} random weights"


class _Function(nn.Module):
    """What a network computes as tensors: of a conditional distribution, what its family is
    given.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.is_conditional = hasattr(network, "outputs") and hasattr(network, "distribution")

    def forward(self, *inputs: Tensor) -> Any:
        compute: Any = self.network.outputs if self.is_conditional else self.network
        return compute(*inputs)


def _as_buffers(function: _Function) -> dict[str, Size]:
    """Makes the weights buffers, which no optimizer finds; returns their shapes by name, of
    shared ones once.
    """
    shapes: dict[str, Size] = {}
    buffers: dict[nn.Parameter, Tensor] = {}
    for path, module in function.named_modules():
        if module is function.network and function.is_conditional:
            continue  # its own parameters are the family's learned constants
        for name, parameter in [*module.named_parameters(recurse=False)]:
            if parameter not in buffers:
                buffers[parameter] = parameter.detach()
                shapes[f"{path}.{name}"] = parameter.shape
            delattr(module, name)
            module.register_buffer(name, buffers[parameter])
    return shapes


def _padded(value: Tensor, ndims: int, lead: Size) -> Tensor:
    """Gives a tensor as many leading dimensions, before its last ``ndims``, as ``lead`` has."""
    return value.reshape((1,) * (len(lead) + ndims - value.dim()) + value.shape)

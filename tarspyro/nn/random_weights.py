"""Networks with random weights, for weights that are a latent variable."""

__all__ = ["RandomWeights"]

from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.parameter import UninitializedParameter

from tarspyro.arguments import check_module
from tarspyro.modules import Configurable, copy_modules
from tarspyro.nn.folding import as_events, event_shapes
from tarspyro.types import Distribution


class RandomWeights(Configurable):
    r"""A network as a function of its inputs and its weights, :math:`f(x; w)`.

    A ``Conditional`` becomes the conditional distribution :math:`p(y \mid x, w)`; any other
    network returns its output. All weights form one vector w. Inputs and weights may have
    leading dimensions, of shapes :math:`(*B, E)` and :math:`(*W, P)`, which broadcast. For
    example, a model samples w outside of its plates, with shape (P,), or (K, 1, P) in a plate
    of K particles; with data of shape (N, E), the result has the batch shape (K, N). All draws
    are computed at once by ``torch.func.vmap``, which does not support layers that change their
    state (batch normalization in training).

    The network is copied. Its own weights are kept as ``initial`` and are not trained. A learned
    constant of a ``Conditional`` (such as ``scale=nn.Parameter(...)``) is not part of w, and is
    trained.

    Arguments:
        network: A ``Conditional``, a ``Deterministic``, or any other ``torch.nn.Module`` that
            returns one tensor.

    Raises:
        TypeError: If ``network`` is not a module.
        ValueError: If ``network`` has no weights, or uninitialized ones; when called, if the
            weights have the wrong size.

    Attributes:
        num_weights: P, the number of weights.

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
        if any(isinstance(weight, UninitializedParameter) for weight in network.parameters()):
            raise ValueError(
                "network has lazy layers, whose weights have no shapes yet: call it on data"
                " once before."
            )
        self.function = _Function(copy_modules(network))
        self._shapes = _as_buffers(self.function)
        self.num_weights = sum(shape.numel() for shape in self._shapes.values())
        if not self.num_weights:
            raise ValueError(f"network must have weights, got {network!r}.")

    @property
    def initial(self) -> Tensor:
        """The weights of the network when it was wrapped, a new tensor of shape (P,).

        A guide may start from them.
        """
        return torch.cat([self.function.get_buffer(name).flatten() for name in self._shapes])

    def forward(self, *inputs: Tensor) -> Distribution | Tensor:
        """Returns the distribution, or the output, given the inputs and, last, the weights."""
        *values, weights = inputs
        if weights.shape[-1:] != (self.num_weights,):
            raise ValueError(
                f"weights must have shape (*, {self.num_weights}), got {tuple(weights.shape)}."
            )
        network: Any = self.function.network
        events = as_events(values, event_shapes(getattr(network, "trunk", network), values))
        leads = [value.shape[: value.dim() - ndims] for value, ndims in events]
        lead = torch.broadcast_shapes(weights.shape[:-1], *leads)
        weights = _padded(weights, 1, lead)
        layout = _Layout(weights.shape[:-1], lead)

        stacked = [layout.stack(value, ndims) for value, ndims in events]
        arguments, dims = zip(*stacked, strict=True)
        flat = weights.permute([*layout.order, -1])
        flat = flat.reshape(layout.draws.numel(), self.num_weights)
        parts = flat.split([shape.numel() for shape in self._shapes.values()], 1)
        named = {
            name: part.reshape(len(part), *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

        # Dropout masks differ between the draws, as they differ between the rows.
        run = vmap(functional_call, (None, 0, dims), randomness="different")
        outputs = run(self.function, named, arguments)
        if not self.function.is_conditional:
            return layout.restore(outputs)
        parameters = {name: layout.restore(output) for name, output in outputs.items()}
        distribution: Distribution = network.distribution(parameters)
        return distribution

    @property
    def headline(self) -> str:
        """The distribution or class of the network, and the number of weights."""
        network = self.function.network
        name = getattr(network, "headline", type(network).__name__)
        return f"{name}, {self.num_weights} random weights"

    def __repr__(self) -> str:
        return f"{self.function.network!r}, {self.num_weights} random weights"


class _Layout:
    """The leading dimensions of a call, divided into draws of the weights and rows.

    ``vmap`` runs over the dimensions along which the weights differ, taken together; all other
    dimensions are the network's batch.

    Arguments:
        of_weights: The leading shape of the weights, with as many dimensions as ``lead``.
        lead: The leading shape of the result.
    """

    def __init__(self, of_weights: Size, lead: Size) -> None:
        self.lead = lead
        self.order = sorted(range(len(lead)), key=lambda dim: of_weights[dim] == 1)
        self.count = sum(size > 1 for size in of_weights)
        self.draws = Size(lead[dim] for dim in self.order[: self.count])
        self.batch = Size(lead[dim] for dim in self.order[self.count :])

    def stack(self, value: Tensor, ndims: int) -> tuple[Tensor, int | None]:
        """Returns an input as ``vmap`` takes it, and the dimension of the draws, if any."""
        value = _padded(value, ndims, self.lead)
        value = value.permute([*self.order, *range(len(self.lead), value.dim())])
        event = value.shape[len(self.lead) :]

        same_for_all_draws = value.shape[: self.count].numel() == 1
        if same_for_all_draws:
            value = value.expand(*value.shape[: self.count], *self.batch, *event)
            return value.reshape(self.batch.numel(), *event), None
        value = value.expand(*self.draws, *self.batch, *event)
        return value.reshape(self.draws.numel(), self.batch.numel(), *event), 0

    def restore(self, output: Tensor) -> Tensor:
        """Returns an output of ``vmap`` with the leading dimensions in their own order."""
        output = output.reshape(self.draws + self.batch + output.shape[2:])
        back = sorted(range(len(self.lead)), key=self.order.__getitem__)
        return output.permute([*back, *range(len(self.lead), output.dim())])


class _Function(nn.Module):
    """A network as a function that returns tensors, as ``vmap`` needs.

    For a conditional distribution these are the free parameters of its family.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.is_conditional = hasattr(network, "outputs") and hasattr(network, "distribution")

    def forward(self, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        network: Any = self.network
        outputs: Tensor | dict[str, Tensor]
        outputs = network.outputs(*inputs) if self.is_conditional else network(*inputs)
        return outputs


def _as_buffers(function: _Function) -> dict[str, Size]:
    """Turns the weights into buffers, which optimizers do not see.

    Returns their shapes by name; a shared weight has one entry.
    """
    shapes: dict[str, Size] = {}
    buffers: dict[nn.Parameter, Tensor] = {}
    for path, module in function.named_modules():
        if module is function.network and function.is_conditional:
            continue  # the family's learned constants
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

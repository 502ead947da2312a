"""Causal networks over sequences: dilated convolutions, and recurrent networks."""

__all__ = ["CausalConv1d", "CausalRNN"]

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Size, Tensor, nn
from torch.nn.functional import linear, pad

from tarspyro.arguments import as_count, as_shape, format_value
from tarspyro.nn.causal import CausalTrunk, HeadWalk, Walk
from tarspyro.nn.conv import dimensions
from tarspyro.nn.initialization import initialize

# The next hidden layer of one step and what the features get, from a hidden layer and the step.
_DilatedStep: TypeAlias = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class _OverTime(CausalTrunk):
    """The base of causal networks over sequences: steps (T,) of numbers, or (T, D) of vectors.

    All elements of a step are drawn together. The features have shape ``(N, T, F)``.
    """

    out_features: int

    def __init__(
        self,
        in_shape: int | Sequence[int],
        num_classes: int | None,
        context: int | Sequence[int] | nn.Module | None,
    ) -> None:
        shape = as_shape("in_shape", in_shape)
        if len(shape) not in (1, 2):
            raise ValueError(
                "in_shape must be the shape of a sequence, (steps,) or (steps, size), got"
                f" {format_value(in_shape)}."
            )
        super().__init__(shape, num_classes, context)
        self.width = math.prod(shape[1:]) * self.depth
        steps = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        self.register_buffer("order", steps.expand(shape).clone(), persistent=False)

    def causal_head(self, positions: Size, trailing: Size) -> nn.Module:
        """Returns a linear layer of single steps."""
        return _StepHead(self.out_features, positions, trailing)

    def _vectors(self, x: Tensor) -> Tensor:
        """Returns the vectors of all steps, (N, T, width)."""
        return self.encoded(x).flatten(2)

    def _before(self, x: Tensor, step: int) -> Tensor:
        """Returns the vector of the step before, (N, width), which is zero for the first."""
        if step == 0:
            return x.new_zeros(len(x), self.width)
        values = x.reshape(len(x), *self.in_shape)
        return self.encoded(values[:, step - 1]).flatten(1)


class CausalConv1d(_OverTime):
    r"""A stack of dilated causal convolutions over time, as in WaveNet.

    It is the trunk of an ``Autoregressive`` over sequences: the features at a step see the
    steps before it alone. Layer l sees every :math:`2^l`-th step, so that the receptive field
    grows as :math:`(k - 1)(2^L - 1) + 1` with the number of layers L. A layer is, with the
    activation a and the context c,

    .. math:: s = a(W_l *_{2^l} h + U_l c), \qquad h' = h + P_l s,

    and the features are the rectified sum of :math:`S_l s` over all layers. Inputs have shape
    :math:`(*, T)`, or :math:`(*, T, D)`, whose D elements of a step are independent given the
    steps before.

    Arguments:
        in_shape: The shape of a sequence, ``(T,)`` or ``(T, D)``.
        channels: The number of channels of a layer.
        num_layers: The number of layers L.
        kernel_size: The number of steps k that a layer sees.
        gated: Whether the activation is :math:`\tanh(s) \, \sigma(t)` of twice as many
            channels, instead of a rectifier.
        context: The context, if there is one: a network to vectors, such as an ``MLP``, or the
            size of a vector.
        num_classes: The number of classes, if x holds the indices of classes, such as
            characters.

    Raises:
        TypeError: If a size is not a whole number.
        ValueError: If ``in_shape`` is not the shape of a sequence.

    References:
        Van den Oord et al. (2016), WaveNet: A Generative Model for Raw Audio,
        arXiv:1609.03499, section 2.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Autoregressive
        >>> p = Autoregressive(dist.Normal, CausalConv1d(100, 16, 4), 100)
        >>> p
        Normal(loc, scale) of shape (100,) from CausalConv1d(100, 4 gated layers of 16 channels)
        >>> p().log_prob(torch.zeros(5, 100)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        channels: int = 32,
        num_layers: int = 4,
        *,
        kernel_size: int = 2,
        gated: bool = True,
        context: int | Sequence[int] | nn.Module | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(in_shape, num_classes, context)
        width = as_count("channels", channels)
        count = as_count("num_layers", num_layers)
        size = as_count("kernel_size", kernel_size)
        given = None if self.context is None else self.context.out_features
        self.enter = initialize(nn.Linear(self.width, width))
        self.layers = nn.ModuleList(
            _Dilated(width, size, 2**index, gated, given) for index in range(count)
        )
        self.out_features = width
        self._summary = f"{dimensions(self.in_shape)}, {count} {'gated ' if gated else ''}"
        self._summary += f"layers of {width} channels"

    def features(self, x: Tensor, given: Tensor | None, mask: int | Tensor) -> Tensor:
        """Returns the features of all steps."""
        hidden = self.enter(pad(self._vectors(x), (0, 0, 1, -1))).transpose(1, 2)
        skips = torch.zeros_like(hidden)
        for layer in self.layers:
            hidden, skip = layer(hidden, given)
            skips = skips + skip
        return torch.relu(skips).transpose(1, 2)

    def walk(self, count: int, given: Tensor | None, mask: int) -> Walk:
        """Returns a function that computes one step of every layer."""
        dilated = cast("list[_Dilated]", list(self.layers))
        layers = [layer.steps(count, self.in_shape[0], given) for layer in dilated]

        def step_of(x: Tensor, step: int) -> Tensor:
            hidden = self.enter(self._before(x, step))
            skips = torch.zeros_like(hidden)
            for layer in layers:
                hidden, skip = layer(hidden, step)
                skips = skips + skip
            return torch.relu(skips)

        return step_of


class _Dilated(nn.Module):
    """A causal convolution with a dilation, a residual and a skip connection."""

    def __init__(
        self, width: int, size: int, dilation: int, gated: bool, given: int | None
    ) -> None:
        super().__init__()
        self.gated = gated
        self.reach = (size - 1) * dilation
        inner = 2 * width if gated else width
        self.convolution = nn.Conv1d(width, inner, size, dilation=dilation)
        self.out = nn.Conv1d(width, 2 * width, 1)
        self.given = None if given is None else nn.Linear(given, inner, bias=False)

    def forward(self, hidden: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the next hidden layer (N, F, T) and what the features get."""
        value = self.convolution(pad(hidden, (self.reach, 0)))
        if self.given is not None:
            value = value + self.given(given).unsqueeze(-1)
        rest, skip = self.out(self.activate(value)).chunk(2, 1)
        return hidden + rest, skip

    def activate(self, value: Tensor) -> Tensor:
        """Returns the activation, of half as many channels if it is gated."""
        if not self.gated:
            return torch.relu(value)
        signal, gate = value.chunk(2, 1)
        return signal.tanh() * gate.sigmoid()

    def steps(self, count: int, length: int, given: Tensor | None) -> _DilatedStep:
        """Returns the layer as a function of one step (N, F) and its number."""
        weight = self.convolution.weight
        seen = weight.new_zeros(count, weight.shape[1], self.reach + length)
        across = weight.flatten(1)
        out = self.out.weight.flatten(1)
        bias: Tensor = self.convolution.bias  # type: ignore[assignment]
        if self.given is not None:
            bias = bias + self.given(given)
        dilation = self.convolution.dilation[0]

        def step_of(hidden: Tensor, step: int) -> tuple[Tensor, Tensor]:
            seen[:, :, self.reach + step] = hidden
            window = seen[:, :, step : step + self.reach + 1 : dilation].flatten(1)
            value = self.activate(linear(window, across) + bias)
            rest, skip = linear(value, out, self.out.bias).chunk(2, 1)
            return hidden + rest, skip

        return step_of


class CausalRNN(_OverTime):
    r"""A recurrent network over a sequence whose features at a step see the steps before it.

    .. math:: h_t = \mathrm{rnn}([x_{t-1}, c], h_{t-1}), \qquad x_{-1} = 0

    It is the trunk of an ``Autoregressive`` over sequences, such as text or music. Inputs have
    shape :math:`(*, T)`, or :math:`(*, T, D)`, whose D elements of a step are independent
    given the steps before.

    Arguments:
        in_shape: The shape of a sequence, ``(T,)`` or ``(T, D)``.
        hidden_size: The number of hidden units.
        num_layers: The number of layers.
        cell: The kind of the network: ``torch.nn.GRU``, ``LSTM`` or ``RNN``.
        context: The context, if there is one: a network to vectors, such as an ``MLP``, or the
            size of a vector. Every step sees it.
        num_classes: The number of classes, if x holds the indices of classes, such as
            characters.

    Raises:
        TypeError: If ``cell`` is not one of these classes, or a size is not a whole number.
        ValueError: If ``in_shape`` is not the shape of a sequence.

    References:
        Graves (2013), Generating Sequences With Recurrent Neural Networks, arXiv:1308.0850.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Autoregressive
        >>> trunk = CausalRNN(20, 32, num_classes=27)
        >>> p = Autoregressive(dist.Categorical, trunk, 20, param_shapes={"logits": (20, 27)})
        >>> p.sample(sample_shape=5).shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        cell: type[nn.RNNBase] = nn.GRU,
        context: int | Sequence[int] | nn.Module | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(in_shape, num_classes, context)
        if cell not in (nn.GRU, nn.LSTM, nn.RNN):
            raise TypeError(
                f"cell must be torch.nn.GRU, LSTM or RNN, got {format_value(cell)}."
            )
        given = 0 if self.context is None else self.context.out_features
        self.out_features = as_count("hidden_size", hidden_size)
        count = as_count("num_layers", num_layers)
        self.rnn = cell(self.width + given, hidden_size, count, batch_first=True)
        self._summary = f"{dimensions(self.in_shape)}, {cell.__name__} of {hidden_size} units"

    def features(self, x: Tensor, given: Tensor | None, mask: int | Tensor) -> Tensor:
        """Returns the hidden units of all steps."""
        inputs = pad(self._vectors(x), (0, 0, 1, -1))
        if given is not None:
            inputs = torch.cat([inputs, given.unsqueeze(1).expand(-1, inputs.shape[1], -1)], 2)
        hidden: Tensor = self.rnn(inputs)[0]
        return hidden

    def walk(self, count: int, given: Tensor | None, mask: int) -> Walk:
        """Returns a function that computes one step of the network."""
        state: Any = None

        def step_of(x: Tensor, step: int) -> Tensor:
            nonlocal state
            inputs = self._before(x, step)
            if given is not None:
                inputs = torch.cat([inputs, given], 1)
            hidden, state = self.rnn(inputs.unsqueeze(1), state)
            return hidden[:, 0]  # type: ignore[no-any-return]

        return step_of


class _StepHead(nn.Linear):
    """A linear layer from the features of a step to a parameter of each of its positions."""

    def __init__(self, size: int, positions: Size, trailing: Size) -> None:
        super().__init__(size, math.prod(positions[1:]) * math.prod(trailing))
        initialize(self)
        self.out_shape = (*positions, *trailing)
        self.trailing = tuple(trailing)

    def forward(self, features: Tensor, mask: int | Tensor = 0) -> Tensor:
        """Returns the parameter of each position of each step."""
        return super().forward(features).reshape(len(features), *self.out_shape)

    def start(self, mask: int = 0) -> HeadWalk:
        """Returns a function to the parameters of a step's positions alone."""

        def step_of(features: Tensor, step: int) -> Tensor:
            rows = linear(features, self.weight, self.bias)
            return rows.reshape(len(features), -1, *self.trailing)

        return step_of

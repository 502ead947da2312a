"""Recurrent cells and networks for programs over sequences."""

__all__ = ["Backward", "ConvLSTMCell", "Recurrence", "as_recurrence"]

from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tarspyro.arguments import as_count, check_method, check_module, format_value
from tarspyro.modules import Configurable
from tarspyro.nn.conv import image_of
from tarspyro.nn.folding import event_shapes, fold, unfold
from tarspyro.nn.initialization import initialize
from tarspyro.sharing import computed_once

# The state of a recurrent cell: a tensor, or several such as the pair (h, c) of an LSTM.
State: TypeAlias = Tensor | tuple[Tensor, ...]

_Recurrent = TypeVar("_Recurrent")


def as_recurrence(name: str, value: _Recurrent) -> _Recurrent:
    """Returns a module with a recurrent state; ``name`` is its argument in error messages.

    Raises:
        TypeError: If it is not callable, or has no method ``initial``.
    """
    what = "a module with a recurrent state, such as nn.Recurrence(...) or nn.Canvas(...)"
    check_method(name, value, "initial", what)
    return value


class Recurrence(Configurable):
    r"""A recurrent cell with the interface that programs over sequences need.

    .. math:: s_t = \mathrm{cell}(\mathrm{trunk}(x_t, z_t), s_{t-1}), \qquad s_{-1} = 0

    Model and guide share one module. Inputs and state may have any leading dimensions, such as
    those of particles, which broadcast. The distributions of a step take the hidden units h:
    the state of a ``GRUCell`` or ``RNNCell``, the first part of the state of an ``LSTMCell``.
    Inputs and states of a ``ConvLSTMCell`` are maps (C, H, W).

    Arguments:
        cell: ``torch.nn.GRUCell``, ``LSTMCell``, ``RNNCell``, ``ConvLSTMCell``, or any module
            that is called like one of them, with features (N, F) and a state (a tensor (N, H)
            or a tuple of them), and has the attributes ``input_size`` and ``hidden_size``.
        trunk: The network from the inputs to the features; by default the inputs, vectors (or
            maps for a ``ConvLSTMCell``), are concatenated.
        learn_initial: Whether the initial state is a parameter, which starts at zero. By
            default it stays zero.

    Raises:
        TypeError: If ``cell`` is not a module with these attributes.

    References:
        Chung et al. (2015), A Recurrent Latent Variable Model for Sequential Data,
        arXiv:1506.02216, eq. 3; there x and z pass through a network each.

    Example:
        >>> recurrence = Recurrence(nn.LSTMCell(88 + 16, 32))
        >>> state = recurrence.initial(10)
        >>> particles = torch.zeros(5, 10, 16)
        >>> state = recurrence(state, torch.zeros(10, 88), particles)
        >>> recurrence.hidden(state).shape
        torch.Size([5, 10, 32])
    """

    def __init__(
        self, cell: nn.Module, trunk: nn.Module | None = None, *, learn_initial: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(cell, nn.Module) or not all(
            hasattr(cell, name) for name in ("input_size", "hidden_size")
        ):
            raise TypeError(
                "cell must be a module with input_size and hidden_size, such as"
                f" torch.nn.GRUCell(8, 32), got {format_value(cell)}."
            )
        if trunk is not None:
            check_module("trunk", trunk)
        self.cell = cell
        self.trunk = trunk
        parts = 2 if isinstance(cell, (nn.LSTMCell, ConvLSTMCell)) else 1
        size: int | tuple[int, ...] = cell.hidden_size  # type: ignore[assignment]
        zeros = torch.zeros(parts, *(size if isinstance(size, tuple) else (size,)))
        if learn_initial:
            self.start = nn.Parameter(zeros)
        else:
            self.register_buffer("start", zeros, persistent=False)

    @computed_once
    def initial(self, batch_size: int) -> State:
        """Returns the state before the first step."""
        count = as_count("batch_size", batch_size)
        start = self.start.unsqueeze(1)
        parts = start.expand(-1, count, *self.start.shape[1:]).unbind()
        return parts if len(parts) > 1 else parts[0]

    def hidden(self, state: State) -> Tensor:
        """Returns the hidden units h of the state."""
        return state[0] if isinstance(state, tuple) else state

    @computed_once
    def forward(self, state: State, *inputs: Tensor) -> State:
        """Returns the next state."""
        parts = state if isinstance(state, tuple) else (state,)
        count = len(inputs)
        ndims = self.start.dim() - 1
        shapes = [ndims] * count if self.trunk is None else event_shapes(self.trunk, inputs)
        folded, lead = fold([*inputs, *parts], [*shapes, *[ndims] * len(parts)])

        values = folded[:count]
        features = torch.cat(values, 1) if self.trunk is None else self.trunk(*values)
        before = tuple(folded[count:])
        after: State = self.cell(features, before if isinstance(state, tuple) else before[0])
        if isinstance(after, tuple):
            return tuple(unfold(part, lead) for part in after)
        return unfold(after, lead)

    def __repr__(self) -> str:
        learned = ", initial state learned" if isinstance(self.start, nn.Parameter) else ""
        trunk = "" if self.trunk is None else f" on {self.trunk!r}"
        return f"{self.cell!r}{trunk}{learned}"


class ConvLSTMCell(Configurable):
    r"""A convolutional LSTM cell: inputs, gates and states are maps.

    .. math:: (i, f, o, g) = W * [x, h] + b, \qquad c' = \sigma(f) \, c + \sigma(i) \tanh(g), \qquad
              h' = \sigma(o) \tanh(c')

    It is called like ``torch.nn.LSTMCell``, with an input of shape (N, C, H, W) and the pair
    (h, c). The gates f start open, with a bias of one. It has no peephole
    connections.

    Arguments:
        in_channels: The number of channels of the input.
        shape: The shape of h and c: (channels, height, width).
        kernel_size: The side of a filter, an odd number.

    Raises:
        ValueError: If ``kernel_size`` is even.

    References:
        Shi et al. (2015), Convolutional LSTM Network, arXiv:1506.04214, eq. 3.

    Example:
        >>> state = (torch.zeros(5, 16, 7, 7), torch.zeros(5, 16, 7, 7))
        >>> h, c = ConvLSTMCell(3, (16, 7, 7))(torch.zeros(5, 3, 7, 7), state)
        >>> h.shape
        torch.Size([5, 16, 7, 7])
    """

    def __init__(
        self, in_channels: int, shape: tuple[int, int, int], kernel_size: int = 3
    ) -> None:
        super().__init__()
        if as_count("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd to keep the size of a map, got {kernel_size}."
            )
        self.hidden_size = image_of(shape)
        self.input_size = (as_count("in_channels", in_channels), *self.hidden_size[1:])
        channels = self.hidden_size[0]
        self.gates = nn.Conv2d(
            in_channels + channels, 4 * channels, kernel_size, padding=kernel_size // 2
        )
        initialize(self.gates)
        with torch.no_grad():
            self.gates.bias[channels : 2 * channels] = 1.0  # type: ignore[index]

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the next h and c."""
        hidden, cell = state
        i, f, o, g = self.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell

    def __repr__(self) -> str:
        sizes = ("x".join(map(str, size)) for size in (self.input_size, self.hidden_size))
        return f"ConvLSTMCell({' -> '.join(sizes)})"


class Backward(Configurable):
    r"""Features of the rest of a sequence, by a recurrent network that runs backwards.

    .. math:: g_t = \mathrm{rnn}(x_t, g_{t+1}), \qquad g_T = 0

    With ``lengths`` the network starts at the end of each sequence, so the padding has no
    effect on the features of its steps. The features at padded steps have no meaning.

    Arguments:
        rnn: ``torch.nn.GRU``, ``LSTM`` or ``RNN``, of one direction; ``batch_first`` or not.

    Raises:
        TypeError: If ``rnn`` is none of these, or bidirectional.

    References:
        Krishnan, Shalit and Sontag (2017), Structured Inference Networks for Nonlinear State
        Space Models, arXiv:1609.09869, section 4.

    Example:
        >>> Backward(nn.GRU(88, 32))(torch.zeros(5, 20, 88)).shape
        torch.Size([5, 20, 32])
    """

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        if not isinstance(rnn, nn.RNNBase) or rnn.bidirectional:
            raise TypeError(
                "rnn must be a torch.nn.GRU, LSTM or RNN of one direction, got"
                f" {format_value(rnn)}."
            )
        self.rnn = rnn

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns the features (B, T, H) of sequences (B, T, F)."""
        steps = torch.arange(x.shape[1], device=x.device)
        last = x.shape[1] - 1 if lengths is None else lengths.unsqueeze(1) - 1
        # From the last step backwards, then the padding; the permutation is its own inverse.
        order = ((last - steps) % x.shape[1]).expand(x.shape[:2]).unsqueeze(-1)
        # gather, because torch.export takes take_along_dim for one number of rows alone.
        backwards = x.gather(1, order.expand(x.shape))
        if self.rnn.batch_first:
            features, _ = self.rnn(backwards)
        else:
            features, _ = self.rnn(backwards.transpose(0, 1))
            features = features.transpose(0, 1)
        forwards: Tensor = features.gather(1, order.expand(features.shape))
        return forwards

    def __repr__(self) -> str:
        return f"Backward({self.rnn!r})"

"""Recurrences compiled step by step: the values and gradients are those of the whole graph."""

import random

import pytest
import torch
from torch import nn

from tarspyro.infer.compilation.recording import record
from tarspyro.infer.compilation.recurrences import in_parts
from tarspyro.infer.compilation.simplification import simplified


def parts_of(function, *args):
    """The loss and gradients of a function in parts and as a whole, and the sizes of the parts;
    the first are None if it has no recurrence.
    """
    recording = record(function, args)
    inputs = [*args, *recording.held]
    sizes = []

    def compiler(graph, examples):
        sizes.append(len(graph.graph.nodes))
        return graph

    whole = recording.run(recording.graph, args)
    graph = simplified(recording.graph)
    compare(recording.run(graph, args), whole)
    split = in_parts(graph, inputs, compiler)
    return (None if split is None else recording.run(split, args)), whole, sizes


def compare(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    for gradient, other in zip(found[2], expected[2], strict=True):
        scale = float(other.abs().max()) + 1e-6
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-5 * scale)


def gru(steps):
    """A recurrent network whose outputs are compared with the following inputs."""
    torch.manual_seed(0)
    cell = nn.GRUCell(3, 4)
    head = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

    def loss(x):
        state = x.new_zeros(len(x), 4)
        total = x.new_zeros(())
        for t in range(steps):
            total = total + ((head(state) - x[:, t]) ** 2).sum()
            state = cell(x[:, t], state)
        return total, {}

    return loss, torch.randn(6, steps, 3)


def lstm(steps):
    torch.manual_seed(0)
    cell = nn.LSTMCell(3, 4)

    def loss(x):
        state = (x.new_zeros(len(x), 4), x.new_zeros(len(x), 4))
        states = []
        for t in range(steps):
            state = cell(x[:, t], state)
            states.append(state[0])
        return (torch.stack(states, 1) ** 2).sum(), {}

    return loss, torch.randn(6, steps, 3)


def two_steps_back(steps):
    """A recurrence in which a state depends on the two before it."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)

    def loss(x):
        before = x[:, 0]
        state = x[:, 1]
        for t in range(2, steps):
            before, state = state, torch.tanh(layer(state) + 0.5 * before + x[:, t])
        return (state**2).sum(), {}

    return loss, torch.randn(6, steps, 4)


def backwards_and_forwards(steps):
    """One recurrence over the inputs in reverse, whose states another one reads."""
    torch.manual_seed(0)
    back = nn.GRUCell(3, 4)
    cell = nn.GRUCell(4, 4)

    def loss(x):
        state = x.new_zeros(len(x), 4)
        states = []
        for t in reversed(range(steps)):
            state = back(x[:, t], state)
            states.append(state)
        state = x.new_zeros(len(x), 4)
        for each in reversed(states):
            state = cell(each, state)
        return (state**2).sum() + torch.stack(states).abs().sum(), {}

    return loss, torch.randn(6, steps, 3)


def an_operation_in_both_directions(steps):
    """A product of two states, whose derivative is such a product too."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)

    def loss(x):
        state = x.new_ones(len(x), 4, 4)
        for t in range(steps):
            state = torch.tanh(torch.bmm(layer(state), state.transpose(1, 2)) + x[:, t])
        return (state**2).sum(), {}

    return loss, torch.randn(6, steps, 4, 4)


def normalized(steps):
    """An operation that returns several tensors, of which the derivative needs two."""
    torch.manual_seed(0)
    cell = nn.GRUCell(3, 4)
    norm = nn.LayerNorm(4)
    of_inputs = nn.LayerNorm(3)

    def loss(x):
        state = x.new_zeros(len(x), 4)
        states = []
        for t in range(steps):
            state = norm(cell(of_inputs(x[:, t]), state))
            states.append(state)
        return torch.stack(states).exp().sum(), {}

    return loss, torch.randn(6, steps, 3)


def chains_side_by_side(steps):
    """Three chains of one cell, one after another, of which the last sees the states of all."""
    torch.manual_seed(0)
    cell = nn.GRUCell(3, 4)
    head = nn.Linear(12, 1)

    def loss(x):
        chains = []
        for chain in range(3):
            states = [x.new_full((len(x), 4), 0.1 * chain)]
            for t in range(steps):
                states.append(cell(x[:, t], states[-1]))
            chains.append(states)
        joined = [torch.cat(states, 1) for states in zip(*chains, strict=True)]
        return head(torch.stack(joined)).logsumexp(0).sum(), {}

    return loss, torch.randn(6, steps, 3)


def with_draws(steps):
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)

    def loss(x):
        state = x
        for _ in range(steps):
            state = torch.tanh(layer(state)) + 0.1 * torch.randn(4, 16)
        return (state**2).sum(), {}

    return loss, torch.randn(4, 16)


@pytest.mark.parametrize(
    "program",
    [gru, lstm, two_steps_back, backwards_and_forwards, an_operation_in_both_directions],
)
def test_a_recurrence_is_that_of_the_whole_graph_and_does_not_grow(program):
    sizes = []
    for steps in (14, 18):
        split, whole, each = parts_of(*program(steps))
        assert split is not None
        compare(split, whole)
        sizes.append(each)
    assert sizes[0] == sizes[1]


def test_several_tensors_of_an_operation_stay_in_one_part():
    split, whole, _ = parts_of(*normalized(10))
    assert split is not None
    compare(split, whole)


def test_a_recurrence_of_steps_that_differ_is_compiled_as_a_whole():
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))

    def loss(x):
        for layer in layers:
            x = torch.tanh(layer(x)) + x
        return (x**2).sum(), {}

    split, _, sizes = parts_of(loss, torch.randn(6, 4))
    assert split is None
    assert not sizes


def test_statistics_that_change_in_place_keep_the_graph_whole():
    layer = nn.Linear(4, 4)
    normalization = nn.BatchNorm1d(4)

    def loss(x):
        for _ in range(12):
            x = torch.tanh(normalization(layer(x)))
        return (x**2).sum(), {}

    graph = record(loss, (torch.randn(6, 4),), buffers=[*normalization.buffers()])
    inputs = [torch.randn(6, 4), *graph.held]
    assert in_parts(simplified(graph.graph), inputs, lambda graph, examples: graph) is None


def test_a_copy_of_a_tensor_that_is_changed_in_place_keeps_the_former_value():
    count = torch.full((3,), 2.0)
    weight = torch.ones(3, requires_grad=True)

    def loss(x):
        before = count[None].clone()
        count.add_(1.0)
        return (weight * before * x).sum() + (weight * count * x).sum(), {}

    recording = record(loss, (torch.ones(3),), buffers=[count])
    graph = simplified(recording.graph)
    (gradient,) = recording.run(graph, (torch.ones(3),))[2]
    assert gradient.tolist() == [5.0, 5.0, 5.0]
    assert count.tolist() == [3.0, 3.0, 3.0]


def test_parameters_that_are_unbound_step_by_step():
    weights = torch.randn(12, 4, 4, requires_grad=True)

    def loss(x):
        for weight in weights:
            x = torch.tanh(x @ weight)
        return (x**2).sum(), {}

    split, whole, _ = parts_of(loss, torch.randn(6, 4))
    if split is not None:
        compare(split, whole)


def test_draws_of_all_steps_have_the_distribution_of_the_program():
    loss, x = with_draws(12)
    recording = record(loss, (x,))
    split = in_parts(
        simplified(recording.graph), [x, *recording.held], lambda graph, examples: graph
    )
    values = torch.tensor(
        [
            [float(recording.run(function, (x,))[0]) for function in (split, recording.graph)]
            for _ in range(300)
        ]
    )
    difference = values.mean(0).diff().abs().item()
    error = (values.var(0).sum() / len(values)).sqrt().item()
    assert values[:, 0].std() > 0
    assert difference < 4 * error


@pytest.mark.parametrize("steps", [6, 9, 16])
def test_chains_side_by_side_are_those_of_the_whole_graph(steps):
    split, whole, _ = parts_of(*chains_side_by_side(steps))
    if split is not None:
        compare(split, whole)


def random_program(seed, chains=1):
    """A random recurrence of two states, some chains of it, and a random loss of its states."""
    draws = random.Random(seed)
    torch.manual_seed(seed)
    width = draws.choice([2, 3, 5])
    layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
    activations = [
        torch.tanh,
        torch.sigmoid,
        torch.relu,
        torch.sin,
        torch.nn.functional.softplus,
    ]

    def operation(depth):
        kind = draws.randrange(6)
        activation = draws.choice(activations)
        layer = draws.choice(layers)
        if depth == 0 or kind == 0:
            place = draws.randrange(3)
            return lambda values: values[place]
        first = operation(depth - 1)
        second = operation(depth - 1)
        if kind == 1:
            return lambda values: activation(first(values))
        if kind == 2:
            return lambda values: activation(layer(first(values)))
        if kind == 3:
            return lambda values: 0.5 * first(values) + second(values)
        if kind == 4:
            return lambda values: torch.tanh(first(values)) * second(values)
        chunk = draws.randrange(2)
        return lambda values: layer(
            torch.cat([first(values), second(values)], 1).chunk(2, 1)[chunk]
        ).tanh_()

    steps = draws.randrange(10, 15)
    functions = [operation(3), operation(3)]
    reads = draws.random() < 0.5

    def loss(x):
        losses = [one_chain(x, 0.5 + chain) for chain in range(chains)]
        return torch.stack(losses).logsumexp(0), {}

    def one_chain(x, scale):
        states = [scale * x[:, 0], x[:, 1]]
        total = x.new_zeros(())
        for t in range(steps):
            values = [*states, x[:, t]]
            states = [torch.tanh(function(values)) for function in functions]
            if reads:
                total = total + (states[0] * x[:, t]).sum()
        return total + sum((state**2).sum() for state in states)

    return loss, torch.randn(4, 20, width)


def test_random_recurrences():
    in_parts_of_them = 0
    # In the last two a recurrence reads the states of another one, with nothing between them.
    for seed in (0, 1, 2, 3, 4, 5, 129, 141):
        split, whole, _ = parts_of(*random_program(seed, chains=1 + seed % 3))
        if split is not None:
            in_parts_of_them += 1
            compare(split, whole)
    assert in_parts_of_them >= 3

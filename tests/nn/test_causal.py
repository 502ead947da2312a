"""Causal networks: what each element sees, growing draws, contexts, errors."""

import pytest
import torch
from torch import Size, nn

from tarspyro.nn import MADE, MLP, CausalConv1d, CausalRNN, ConvDecoder, PixelCNN

VECTOR = MLP(2, [5])
MAP = ConvDecoder(2, (3, 3, 4), [4])
TIED = torch.tensor([[3, 1, 2], [1, 2, 0]])

TRUNKS = {
    "MADE": lambda: MADE((2, 3), [40, 30]),
    "MADE without hidden layers": lambda: MADE(6, []),
    "MADE in a random order": lambda: MADE(6, [40], order="random", seed=1),
    "MADE with ties": lambda: MADE((2, 3), [40], order=TIED),
    "MADE with masks": lambda: MADE(6, [60, 60], order="random", num_masks=3),
    "MADE with direct connections": lambda: MADE((2, 3), [20], direct_connections=True),
    "MADE of classes": lambda: MADE(4, [30], num_classes=3),
    "MADE with a context": lambda: MADE(6, [40], context=VECTOR, activation=nn.Tanh),
    "PixelCNN": lambda: PixelCNN((3, 4), 6, 3),
    "PixelCNN, large windows": lambda: PixelCNN((1, 4, 3), 12, 2, kernel_size=5),
    "PixelCNN, a large first window": lambda: PixelCNN((3, 4), 12, 2, kernel_size=[7, 3]),
    "PixelCNN, gated": lambda: PixelCNN((1, 3, 4), 6, 3, gated=True),
    "PixelCNN of colours": lambda: PixelCNN((3, 3, 4), 6, 3),
    "PixelCNN, colours at once": lambda: PixelCNN((3, 3, 4), 12, 3, channel_order=False),
    "PixelCNN of classes": lambda: PixelCNN((2, 3, 4), 6, 3, num_classes=3, gated=True),
    "PixelCNN with a vector": lambda: PixelCNN((3, 4), 12, 3, context=VECTOR),
    "PixelCNN with a map": lambda: PixelCNN((3, 3, 4), 6, 3, gated=True, context=MAP),
    "CausalConv1d": lambda: CausalConv1d(7, 6, 3),
    "CausalConv1d, plain": lambda: CausalConv1d((5, 2), 6, 2, kernel_size=3, gated=False),
    "CausalConv1d with a context": lambda: CausalConv1d(7, 6, 3, context=VECTOR),
    "CausalRNN": lambda: CausalRNN((5, 2), 6, 2),
    "CausalRNN of classes": lambda: CausalRNN(5, 6, cell=nn.LSTM, num_classes=3),
    "CausalRNN with a context": lambda: CausalRNN((5, 2), 6, cell=nn.RNN, context=VECTOR),
}


def built(name):
    """A trunk and a head of two numbers for each element, in double precision, with weights of
    a size that no path vanishes; x and the context.
    """
    torch.manual_seed(0)
    trunk = TRUNKS[name]()
    head = trunk.causal_head(Size(trunk.in_shape), Size([2]))
    both = nn.ModuleList([trunk, head]).double()
    for weight in both.parameters():
        nn.init.normal_(weight, 0.0, 0.4)
    x = torch.randn(1, *trunk.in_shape, dtype=torch.float64)
    if trunk.num_classes:
        x = torch.randint(trunk.num_classes, x.shape).double()
    context = [] if trunk.context is None else [torch.randn(1, 2, dtype=torch.float64)]
    return trunk, head, x, context


def parameters_of(trunk, head, x, context, mask):
    if trunk.num_masks == 1:
        return head(trunk(x, *context)).flatten(1, -2)
    return head(trunk(x, *context, mask=mask), mask).flatten(1, -2)


@pytest.mark.parametrize("name", [name for name in TRUNKS if "classes" not in name])
def test_jacobian(name):
    """An element depends on all elements before it, without a blind spot, and on no other."""
    trunk, head, x, context = built(name)
    for mask in range(trunk.num_masks):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, mask=mask: parameters_of(trunk, head, x, context, mask), x
        )
        depends = (jacobian[0].flatten(2) != 0).any(1)
        ranks = trunk.order.reshape(trunk.num_masks, -1)[mask]
        before = ranks.unsqueeze(0) < ranks.unsqueeze(1)
        assert not (depends & ~before).any()
        if name != "CausalConv1d, plain":  # it reaches seven steps back
            assert depends.equal(before)


@pytest.mark.parametrize("name", [name for name in TRUNKS if "classes" in name])
def test_classes_see_those_before_alone(name):
    trunk, head, x, context = built(name)
    expected = parameters_of(trunk, head, x, context, 0)
    size = x.numel()
    for place in range(size):
        other = x.clone().flatten()
        other[place] = (other[place] + 1) % trunk.num_classes
        found = parameters_of(trunk, head, other.reshape(x.shape), context, 0)
        changed = (found != expected).any(-1)[0]
        ranks = trunk.order.flatten()
        assert changed.equal(ranks > ranks[place])


@pytest.mark.parametrize("name", TRUNKS)
def test_steps_are_the_whole_pass(name):
    """The features of one step, which keep what earlier steps computed, give the parameters of
    a pass of the whole network.
    """
    trunk, head, x, context = built(name)
    x = torch.cat([x, x.flip(-1)])
    context = [part.expand(2, -1) for part in context]
    for mask in range(trunk.num_masks):
        whole = parameters_of(trunk, head, x, context, mask)
        ranks = trunk.order.reshape(trunk.num_masks, -1)[mask]
        with torch.no_grad():
            features = trunk.start(2, context, mask)
            parameters = head.start(mask)
            for step in range(int(ranks.max()) + 1):
                now = ranks == step
                # What is not drawn yet does not matter.
                seen = torch.where((ranks < step).reshape(x.shape[1:]), x, 0.0)
                found = parameters(features(seen, step), step)
                torch.testing.assert_close(found, whole[:, now])


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("lead", [(3,), (2, 3), ()], ids=str)
def test_leading_dimensions_are_a_batch(name, lead):
    trunk, _, x, context = built(name)
    inputs = [part[0].expand(*lead, *part.shape[1:]) for part in [x, *context]]
    output = trunk(*inputs)
    one = trunk(x, *context)
    assert output.shape == (*lead, *one.shape[1:])
    torch.testing.assert_close(output, one[0].expand_as(output))


def test_the_context_reaches_every_element():
    for name in TRUNKS:
        trunk, head, x, context = built(name)
        if context:
            other = [part + 1.0 for part in context]
            changed = parameters_of(trunk, head, x, context, 0) != parameters_of(
                trunk, head, x, other, 0
            )
            assert changed.all(), name


def test_maps_reach_their_own_pixels():
    """A map of the size of the image acts where it is, through windows of bounded size."""
    torch.manual_seed(0)
    trunk = PixelCNN((1, 6, 6), 4, 1, context=(2, 6, 6))
    given = torch.zeros(1, 2, 6, 6)
    other = given.clone()
    other[..., 2, 3] = 1.0
    x = torch.rand(1, 1, 6, 6)
    changed = (trunk(x, given) != trunk(x, other)).any(1)[0]
    assert changed.nonzero().tolist() == [[2, 3]]


def test_several_masks_differ():
    trunk = MADE(12, [30], num_masks=4)
    assert trunk.order.equal(torch.arange(12).expand(4, 12))  # one order, other connections
    x = torch.rand(1, 12)
    assert len({tuple(trunk(x, mask=mask)[0].tolist()) for mask in range(4)}) == 4
    randomized = MADE(12, [30], order="random", num_masks=4)
    assert len({tuple(row.tolist()) for row in randomized.order}) == 4


def test_seeds_decide_the_masks():
    one, same, other = (MADE(12, [30], order="random", seed=seed) for seed in (1, 1, 2))
    assert one.order.equal(same.order)
    assert not one.order.equal(other.order)


@pytest.mark.parametrize(
    ("build", "kind", "words"),
    [
        (
            lambda: MADE(6, [5], order="zigzag"),
            ValueError,
            "order must be 'raster' or 'random'",
        ),
        (lambda: MADE(6, [5], order=torch.arange(5)), ValueError, "a rank for each element"),
        (lambda: MADE(6, [5], num_masks=0), ValueError, "num_masks must be at least 1"),
        (lambda: MADE(6, 5), TypeError, "hidden_features must be a list"),
        (lambda: MADE(6, [], context=2), ValueError, "a layer that sees the context"),
        (
            lambda: MADE(6, [5], activation=lambda: nn.Softmax(-1)),
            ValueError,
            "must act on each unit alone",
        ),
        (lambda: MADE(6, [5], context=nn.Flatten()), ValueError, "attribute out_features"),
        (lambda: MADE(6, [5], context=(2, 3)), ValueError, "context must be a network"),
        (lambda: PixelCNN(28), ValueError, "in_shape must be the shape of an image"),
        (lambda: PixelCNN((1, 8, 8), kernel_size=4), ValueError, "kernel_size must be odd"),
        (
            lambda: PixelCNN((1, 8, 8), 4, 3, kernel_size=[5, 3]),
            ValueError,
            "kernel_size must be a number, or 3 of them",
        ),
        (
            lambda: PixelCNN((1, 8, 8), num_classes=1),
            ValueError,
            "num_classes must be at least",
        ),
        (lambda: CausalConv1d((1, 8, 8)), ValueError, "in_shape must be the shape of a seq"),
        (lambda: CausalRNN(8, cell=nn.GRUCell), TypeError, "cell must be torch.nn.GRU"),
        (lambda: MADE(6, [5])(torch.zeros(3, 7)), ValueError, "takes inputs of shape"),
    ],
)
def test_errors(build, kind, words):
    with pytest.raises(kind, match=words):
        build()

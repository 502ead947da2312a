"""Readers and writers with Gaussian filters, against loops in numpy; convolutional cells and
maps.
"""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import tarspyro.nn
from tarspyro import Conditional
from tarspyro.nn import (
    AttentionRead,
    AttentionWrite,
    Canvas,
    ConvLSTMCell,
    ConvRead,
    ConvWrite,
    FeatureMap,
    IdentityTrunk,
    Read,
    Recurrence,
    Write,
)

SHAPES = {"1x5x7": (1, 5, 7), "3x6x4": (3, 6, 4), "1x1x1": (1, 1, 1)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
each_size = pytest.mark.parametrize("size", [1, 2, 5])


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def filters(placing, size, shape):
    """Equations 22 to 26 of the paper, with pixels and filters counted from one."""
    height, width = shape[1:]
    across, down, log_variance, log_stride, log_intensity = placing
    g_x, g_y = (width + 1) / 2 * (across + 1), (height + 1) / 2 * (down + 1)
    stride = (max(height, width) - 1) / max(size - 1, 1) * math.exp(log_stride)
    banks = []
    for center, length in ((g_y, height), (g_x, width)):
        bank = np.zeros((size, length))
        for i in range(1, size + 1):
            mean = center + (i - size / 2 - 0.5) * stride
            for a in range(1, length + 1):
                bank[i - 1, a - 1] = math.exp(
                    -((a - mean) ** 2) / (2 * math.exp(log_variance))
                )
            bank[i - 1] /= bank[i - 1].sum()
        banks.append(bank)
    return *banks, math.exp(log_intensity)


def placed(module, placing):
    """A module whose window is in one place for every state."""
    with torch.no_grad():
        module.placing.weight.zero_()
        module.placing.bias.copy_(torch.as_tensor(placing))
    return module


@each_size
@each_shape
def test_reading_and_writing_are_the_papers_loops(shape, size):
    channels, height, width = shape
    read, write = AttentionRead(4, shape, size), AttentionWrite(4, shape, size)
    x, error, h = torch.randn(3, *shape), torch.randn(3, *shape), torch.randn(3, 4)
    seen, written = read(x, error, h), write(h)
    assert seen.shape == (3, read.out_features) and written.shape == (3, *shape)
    for row in range(3):
        rows, columns, intensity = filters(read.placing(h[row]).tolist(), size, shape)
        images = [*x[row].numpy(), *error[row].numpy()]
        expected = [intensity * rows @ image @ columns.T for image in images]
        np.testing.assert_allclose(
            seen[row].detach().numpy(), np.stack(expected).flatten(), atol=1e-12
        )
        rows, columns, intensity = filters(write.placing(h[row]).tolist(), size, shape)
        patch = write.patch(h[row]).detach().numpy().reshape(channels, size, size)
        expected = [rows.T @ part @ columns / intensity for part in patch]
        np.testing.assert_allclose(
            written[row].detach().numpy(), np.stack(expected), atol=1e-12
        )


def test_sharp_filters_on_every_pixel_read_the_image_back():
    """N filters one pixel apart with a variance near zero are the identity, in reading and
    writing.
    """
    shape, sharp = (2, 6, 6), [0.0, 0.0, -8.0, 0.0, math.log(3.0)]
    read, write = (
        placed(AttentionRead(4, shape, 6), sharp),
        placed(AttentionWrite(4, shape, 6), sharp),
    )
    x, error, h = torch.randn(5, *shape), torch.randn(5, *shape), torch.randn(5, 4)
    torch.testing.assert_close(read(x, error, h), 3 * torch.cat([x, error], 1).flatten(1))
    torch.testing.assert_close(write(h), write.patch(h).reshape(5, *shape) / 3)


def test_writing_is_the_transpose_of_reading():
    """<read(x), w> = <x, write(w)> for the same window."""
    placing = [0.2, -0.3, 0.5, -0.4, 0.0]
    shape = (3, 5, 8)
    read, write = (
        placed(AttentionRead(4, shape, 3), placing),
        placed(AttentionWrite(4, shape, 3), placing),
    )
    x, h = torch.randn(2, *shape), torch.randn(2, 4)
    seen = read(x, torch.zeros(shape), h).reshape(2, 6, 3, 3)[:, :3]
    patch = write.patch(h).reshape(2, 3, 3, 3)
    torch.testing.assert_close((seen * patch).sum((1, 2, 3)), (x * write(h)).sum((1, 2, 3)))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 12, 30])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 60, 60), (2, 6, 6), (1, 1, 1)])
def test_a_new_window_covers_the_image(shape, size):
    """A patch of ones adds one to a pixel in the mean, and no pixel is left out; the reader
    weighs the pixels in the same way, and reads a grey image as it is.
    """
    read, write = AttentionRead(4, shape, size), AttentionWrite(4, shape, size)
    nn.init.ones_(write.patch.bias)
    painted = write(torch.zeros(4))
    torch.testing.assert_close(painted.mean(), torch.tensor(1.0))
    assert 0.4 < painted.min() and painted.max() < 2.1
    x = torch.full(shape, 0.3, requires_grad=True)
    seen = read(x, x.detach(), torch.zeros(4))
    torch.testing.assert_close(seen, torch.full_like(seen, 0.3))
    seen.sum().backward()
    torch.testing.assert_close(x.grad / x.grad.mean(), painted)


def test_a_new_window_covers_an_image_that_is_not_square():
    for size in (2, 5, 12):
        write = AttentionWrite(4, (1, 32, 64), size)
        nn.init.ones_(write.patch.bias)
        painted = write(torch.zeros(4))
        torch.testing.assert_close(painted.mean(), torch.tensor(1.0))
        assert painted.min() > 0.3


def test_boxes_are_the_windows_in_pixels():
    shape = (1, 9, 11)
    write = placed(AttentionWrite(4, shape, 3), [0.0] * 5)
    torch.testing.assert_close(
        write.boxes(torch.zeros(7, 2, 4))[3, 1], torch.tensor([5.0, 4.0, 10.0, 1.0])
    )
    placed(write, [0.5, -0.5, math.log(4.0), math.log(0.5), 0.0])
    # (11 + 1) / 2 * 1.5 - 1 and (9 + 1) / 2 * 0.5 - 1, half as wide, with a deviation of two
    torch.testing.assert_close(write.boxes(torch.zeros(4)), torch.tensor([8.0, 1.5, 5.0, 2.0]))
    read = placed(AttentionRead(4, shape, 1), [0.5, -0.5, -9.0, 0.0, 0.0])
    assert read.boxes(torch.zeros(4))[2] == 0
    x = torch.zeros(1, 9, 11)
    x[0, 2, 8] = x[0, 1, 8] = 1.0  # the two nearest rows, halfway
    torch.testing.assert_close(read(x, x, torch.zeros(4)), torch.tensor([1.0, 1.0]))


def test_windows_far_outside_and_of_any_width_have_finite_gradients():
    for placing in (
        [40.0, -40.0, -6.0, 0.0, 0.0],
        [0.0, 0.0, 12.0, 3.0, -3.0],
        [0.0, 0.0, -12.0, -9.0, 3.0],
    ):
        read = placed(AttentionRead(4, (1, 7, 7), 3), placing)
        seen = read(torch.rand(1, 7, 7), torch.rand(1, 7, 7), torch.zeros(4))
        seen.sum().backward()
        assert seen.isfinite().all() and all(
            p.grad.isfinite().all() for p in read.parameters()
        )


def test_gradients():
    shape = (2, 4, 3)
    read, write = AttentionRead(3, shape, 2), AttentionWrite(3, shape, 2)
    inputs = [torch.randn(2, *size, requires_grad=True) for size in (shape, shape, (3,))]
    assert torch.autograd.gradcheck(read, inputs) and torch.autograd.gradcheck(
        write, inputs[-1:]
    )


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 4, 6)])
def test_without_attention_all_is_read_and_written(shape):
    read, write = Read(shape), Write(4, shape)
    x, error, h = torch.randn(3, *shape), torch.randn(2, 3, *shape), torch.randn(2, 3, 4)
    seen = read(x.flatten(1), error, h)
    torch.testing.assert_close(seen[1, 2], torch.cat([x[2].flatten(), error[1, 2].flatten()]))
    assert seen.shape == (2, 3, read.out_features)
    torch.testing.assert_close(write(h)[1, 2].flatten(), write.linear(h[1, 2]))


READERS = {
    "Read": lambda: (Read((2, 4, 6)), (5,)),
    "AttentionRead": lambda: (AttentionRead(5, (2, 4, 6), 3), (5,)),
    "ConvRead": lambda: (ConvRead((2, 4, 6), 7, 2), (5, 2, 3)),
}
WRITERS = {
    "Write": lambda: (Write(5, (2, 4, 6)), (5,)),
    "AttentionWrite": lambda: (AttentionWrite(5, (2, 4, 6), 3), (5,)),
    "ConvWrite": lambda: (ConvWrite((5, 2, 3), (2, 4, 6)), (5, 2, 3)),
}


@pytest.mark.parametrize("make", READERS.values(), ids=READERS)
def test_readers_take_leading_dimensions_that_broadcast(make):
    read, state = make()
    x, error, h = torch.randn(3, 2, 4, 6), torch.randn(4, 3, 48), torch.randn(4, 3, *state)
    together = read(x, error, h)
    for k in range(4):
        torch.testing.assert_close(together[k], read(x, error[k], h[k]))
    with pytest.raises(
        ValueError, match=r"takes inputs of shape \(\*, 2, 4, 6\) or \(\*, 48\), got \(3, 47\)"
    ):
        read(torch.zeros(3, 47), error[0], h[0])


@pytest.mark.parametrize("make", WRITERS.values(), ids=WRITERS)
def test_writers_take_leading_dimensions(make):
    write, state = make()
    h = torch.randn(4, 3, *state)
    together = write(h)
    assert together.shape == (4, 3, 2, 4, 6) and write.shape == (2, 4, 6)
    for k in range(4):
        torch.testing.assert_close(together[k], write(h[k]))


# --- convolutions


def test_convolutional_cells_by_hand():
    """With filters of one pixel a ConvLSTMCell is an LSTM at each place; the order of torch's
    gates is i, f, g, o.
    """
    cell, same = ConvLSTMCell(3, (4, 2, 5), kernel_size=1), nn.LSTMCell(3, 4)
    assert (cell.gates.bias == torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(4)).all()
    weight, bias = cell.gates.weight.detach()[:, :, 0, 0], cell.gates.bias.detach()
    order = torch.arange(16).reshape(4, 4)[[0, 1, 3, 2]].flatten()
    with torch.no_grad():
        same.weight_ih.copy_(weight[order, :3]), same.weight_hh.copy_(weight[order, 3:])
        same.bias_ih.copy_(bias[order]), same.bias_hh.zero_()
    x, h, c = torch.randn(6, 3, 2, 5), torch.randn(6, 4, 2, 5), torch.randn(6, 4, 2, 5)
    pixels = [value.movedim(1, -1).flatten(0, 2) for value in (x, h, c)]
    for one, other in zip(cell(x, (h, c)), same(pixels[0], tuple(pixels[1:])), strict=True):
        torch.testing.assert_close(one.movedim(1, -1).flatten(0, 2), other)
    assert cell(x, (h, c))[0].shape == ConvLSTMCell(3, (4, 2, 5), 5)(x, (h, c))[0].shape
    with pytest.raises(ValueError, match="kernel_size must be odd.* got 4"):
        ConvLSTMCell(3, (4, 2, 5), 4)


@pytest.mark.parametrize("learned", [True, False])
def test_convolutional_recurrences(learned):
    cell = ConvLSTMCell(3 + 2, (4, 2, 5))
    recurrence = Recurrence(cell, learn_initial=learned)
    state = recurrence.initial(6)
    assert [part.shape for part in state] == [(6, 4, 2, 5)] * 2
    x, y = torch.randn(6, 3, 2, 5), torch.randn(7, 6, 2, 2, 5)
    after = recurrence(state, x, y)
    torch.testing.assert_close(after[0][3], cell(torch.cat([x, y[3]], 1), state)[0])
    assert (
        recurrence.hidden(after) is after[0]
        and len(list(recurrence.parameters())) == 2 + learned
    )


def test_maps_and_vectors_are_laid_over_each_other():
    trunk = FeatureMap([(3, 2, 5), 4])
    x, y = torch.randn(7, 6, 3, 2, 5), torch.randn(6, 4)
    seen = trunk(x, y)
    assert seen.shape == (7, 6, 7, 2, 5) and torch.equal(seen[:, :, :3], x)
    assert (seen[2, :, 3:] == y[..., None, None]).all()
    parameters = Conditional(dist.Normal, FeatureMap((3, 2, 5)), (2, 2, 5))
    found = parameters(x).base_dist.loc
    torch.testing.assert_close(found[4], parameters.heads["loc"](x[4]))
    for make, message in {
        lambda: FeatureMap([3, 4]): "in_shapes must have at least one map",
        lambda: FeatureMap([(3, 2, 5), (3, 4, 5)]): "same height and width",
        lambda: FeatureMap((3, 2, 5), 2): "kernel_size must be odd",
        lambda: Conditional(
            dist.Normal, FeatureMap((3, 2, 5)), 10
        ): r"same height and width, got one of shape \(10,\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            make()


def test_identity_trunk():
    logits = torch.randn(3, 2, 2, 4)
    for shape in ((2, 2, 4), 16, (4, 4)):
        found = Conditional(dist.Bernoulli, IdentityTrunk((2, 2, 4)), shape)(logits)
        assert found.event_shape == torch.Size([shape] if isinstance(shape, int) else shape)
        assert torch.equal(found.base_dist.logits.flatten(), logits.flatten())
    learned = Conditional(
        dist.Normal, IdentityTrunk((2, 2, 4)), 16, scale=nn.Parameter(torch.tensor(0.5))
    )
    assert len(list(learned.parameters())) == 1 and torch.equal(
        learned(logits).mean, logits.flatten(1)
    )
    with pytest.raises(
        ValueError, match=r"IdentityTrunk, of shape \(2, 2, 4\), got shape \(15,\)"
    ):
        Conditional(dist.Bernoulli, IdentityTrunk((2, 2, 4)), 15)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_strided_maps_divide_the_sides(stride):
    shape, small = (2, 12, 24), (3, 12 // stride, 24 // stride)
    assert ConvRead(shape, 3, stride).out_shape == small
    assert (
        ConvRead(shape, 3, stride)(
            torch.zeros(5, *shape), torch.zeros(5, *shape), torch.zeros(())
        ).shape[1:]
        == small
    )
    assert ConvWrite(small, shape)(torch.zeros(5, *small)).shape == (5, *shape)


def test_a_canvas_adds_the_writers_output():
    canvas = Canvas(
        Recurrence(nn.LSTMCell(2 + 3, 4)),
        Write(4, (1, 2, 3)),
        view=nn.Sequential(nn.Flatten(), nn.Linear(6, 3)),
    )
    state = canvas.initial(5)
    assert (
        (canvas.painted(state) == 0).all()
        and canvas.start.requires_grad
        and canvas.boxes(state) is None
    )
    with torch.no_grad():
        canvas.start.fill_(0.3)
    state, z = canvas.initial(5), torch.randn(2, 5, 2)
    h, c = canvas.cell.cell(torch.cat([z[0], canvas.view(canvas.painted(state))], 1))
    after = canvas(state, z[0])
    torch.testing.assert_close(canvas.hidden(after), h)
    torch.testing.assert_close(canvas.painted(after), 0.3 + canvas.write(h))
    plain = Canvas(canvas.cell, canvas.write)
    assert repr(
        plain
    ) == "Write(1x2x3) after LSTMCell(5, 4)" and " that sees Sequential" in repr(canvas)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: Read((28, 28)),
            ValueError,
            r"shape must be .* \(channels, height, width\), got \(28, 28\)",
        ),
        (
            lambda: Write(4, (784,)),
            ValueError,
            r"shape must be the shape of an image.* got \(784,\)",
        ),
        (lambda: AttentionRead(4, (1, 5, 5), 0), ValueError, "size must be at least 1, got 0"),
        (
            lambda: AttentionWrite(4, (1, 5, 5), -1),
            ValueError,
            "size must be at least 1, got -1",
        ),
        (
            lambda: ConvRead((1, 28, 28), 4, 3),
            ValueError,
            "stride must divide height and width.* got 3",
        ),
        (
            lambda: ConvWrite((4, 7, 7), (1, 28, 21)),
            ValueError,
            r"same multiple .* got shape \(1, 28, 21\) and in_shape \(4, 7, 7\)",
        ),
        (
            lambda: Canvas(nn.LSTMCell(2, 4), Write(4, (1, 5, 5))),
            TypeError,
            "cell must be a Recurrence",
        ),
        (
            lambda: Canvas(Recurrence(nn.LSTMCell(2, 4)), nn.Linear(4, 25)),
            TypeError,
            "write must be a module with the attribute shape",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_old_name_of_the_identity_trunk():
    with pytest.warns(DeprecationWarning, match="Unchanged is now tarspyro.nn.IdentityTrunk"):
        assert tarspyro.nn.Unchanged is IdentityTrunk
    with pytest.raises(AttributeError, match="has no attribute 'Unchange'"):
        tarspyro.nn.Unchange  # noqa: B018

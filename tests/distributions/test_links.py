"""Links to a family's parameters: an exponential where it matters, finite everywhere."""

import math
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import constraints, transform_to
from torch.fx.experimental.proxy_tensor import make_fx

from tarspyro.distributions.links import Positive, link_to

EVERYWHERE = torch.tensor(
    [-1e30, -1e6, -100, -20.001, -20, -3, 0, 2.5, 20, 20.001, 90, 1e6, 1e9]
)


def test_it_is_the_exponential_where_networks_are():
    u = torch.linspace(-20, 20, 401, dtype=torch.float64)
    assert torch.equal(Positive()(u), u.exp())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_positive_finite_and_increasing_everywhere(dtype):
    u = EVERYWHERE.to(dtype)
    value = Positive()(u)
    assert value.isfinite().all() and (value > 0).all()
    assert (value.diff() > 0).all() or dtype is torch.float32
    assert (value.diff() >= 0).all()


def test_the_inverse_and_the_derivative():
    u = EVERYWHERE[1:].double().requires_grad_()
    link = Positive()
    value = link(u)
    assert torch.allclose(link.inv(value), u, rtol=1e-6)
    (slope,) = torch.autograd.grad(value.sum(), u)
    assert torch.allclose(link.log_abs_det_jacobian(u, value), slope.log())
    assert torch.autograd.gradcheck(link, (u[1:-3],))


def test_other_constraints_keep_torch_s_transforms():
    assert isinstance(link_to(constraints.positive), Positive)
    for constraint in (
        constraints.real,
        constraints.unit_interval,
        constraints.simplex,
        constraints.lower_cholesky,
    ):
        assert link_to(constraint) == transform_to(constraint)
    u = torch.linspace(-5, 5, 11)
    above = constraints.greater_than(3.0)
    assert torch.allclose(link_to(above)(u), transform_to(above)(u))
    assert link_to(above)(torch.tensor(1e4)).isfinite()
    assert isinstance(link_to(constraints.nonnegative), Positive)


def _traced(link, inside):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        return torch.jit.trace(_Module(link), inside)


RECORDED = {
    "make_fx": lambda link, inside: make_fx(link)(inside),
    "make_fx, fake": lambda link, inside: make_fx(link, tracing_mode="fake")(inside),
    "torch.compile": lambda link, inside: torch.compile(_Module(link), backend="eager"),
    "torch.export": lambda link, inside: torch.export.export(
        _Module(link), (inside,)
    ).module(),
    "torch.jit.trace": _traced,
    "vmap": lambda link, inside: torch.func.vmap(link),
    "grad of vmap": lambda link, inside: lambda u: torch.func.vjp(torch.func.vmap(link), u)[0],
}


class _Module(torch.nn.Module):
    def __init__(self, link):
        super().__init__()
        self.link = link

    def forward(self, u):
        return self.link(u)


@pytest.mark.parametrize("way", RECORDED)
def test_what_is_recorded_does_not_depend_on_the_numbers(way):
    link = Positive()
    recorded = RECORDED[way](link, torch.zeros(len(EVERYWHERE)))
    recorded(torch.zeros(len(EVERYWHERE)))
    assert torch.equal(recorded(EVERYWHERE), link(EVERYWHERE))


@pytest.mark.parametrize("far", [1e6, -1e6])
def test_numbers_beside_a_distant_one_are_what_they_are_alone(far):
    u = torch.linspace(-20, 20, 41, requires_grad=True)
    link = Positive()
    (alone,) = torch.autograd.grad(link(u).sum(), u)
    (beside,) = torch.autograd.grad(link(torch.cat([u, torch.tensor([far])]))[:-1].sum(), u)
    assert torch.equal(link(torch.cat([u, torch.tensor([far])]))[:-1], link(u))
    # At the ends of the clamp both have the derivative of the exponential.
    assert torch.equal(beside[1:-1], alone[1:-1])


def test_tensors_without_numbers():
    with FakeTensorMode():
        u = torch.zeros(3)
    assert Positive()(u).shape == (3,)


def test_numbers_that_are_none_stay_none():
    assert Positive()(torch.tensor([0.0, math.nan])).isnan().tolist() == [False, True]
    assert Positive()(torch.empty(0, 3)).shape == (0, 3)

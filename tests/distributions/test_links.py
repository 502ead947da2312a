"""Links to a family's parameters: an exponential where it matters, finite everywhere."""

import pytest
import torch
from torch.distributions import constraints, transform_to

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

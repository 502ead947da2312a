"""The account of the weights: which sites belong to which data points, and what is made of it."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import BatchNorm
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal, AutoStructured
from torch import nn

from tarspyro import Conditional, evaluate, guides, models
from tarspyro.infer import (
    ELBO,
    FIVO,
    IWAE,
    PIWAE,
    TVO,
    FDivergence,
    PairError,
    Renyi,
    log_weights,
)
from tarspyro.nn import MLP, Recurrence

from ..programs import assert_within


def draws(bound, model, guide, *args, count=200):
    """Values of a bound, not of its loss."""
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(-bound.loss(model, guide, *args))
    return torch.tensor(found)


def below(values, evidence):
    assert values.mean() <= evidence + 4 * values.std() / len(values) ** 0.5


# --- what data points share
# -----------------------------------------------------------------------------------------


def parts(y):
    with pyro.plate("parts", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if y is not None:
        pyro.sample("y", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=y)


def test_an_observation_outside_the_plate_of_what_it_depends_on():
    def guide(y):
        with pyro.plate("parts", 3):
            pyro.sample("z", dist.Normal(y / 4, 0.9))

    y = torch.tensor([2.0])
    evidence = dist.Normal(0.0, 2.0).log_prob(y).item()
    assert IWAE(10).structure(parts, guide, y).joint
    values = {k: draws(IWAE(k), parts, guide, y) for k in (1, 10, 50)}
    for value in values.values():
        below(value, evidence)
    assert values[50].mean() > evidence - 0.03 > values[1].mean()
    with pytest.raises(PairError, match=r"share \['z'\]"):
        log_weights(parts, guide, y)


class Groups:
    """Data that is indexed by groups, with or without a latent variable of each data point."""

    def __init__(self, local=False):
        self.local, self.group = local, torch.arange(12) % 3
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(3, generator=generator)[self.group] + torch.randn(
            12, generator=generator
        )

    def model(self, x):
        with pyro.plate("groups", 3):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            mean = mu[..., self.group]
            if self.local:
                mean = mean + pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("groups", 3):
            pyro.sample("mu", dist.Normal(0.3, 0.6))
        if self.local:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 3, 1.0))

    @property
    def evidence(self):
        same = (self.group[:, None] == self.group).float()
        covariance = same + (2.0 if self.local else 1.0) * torch.eye(12)
        return dist.MultivariateNormal(torch.zeros(12), covariance).log_prob(self.x).item()


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize(
    "bound", [IWAE(20), IWAE(5, num_groups=4), Renyi(0.5, 20)], ids=["IWAE", "groups", "Renyi"]
)
def test_groups_by_index_are_below_the_evidence(bound, local):
    case = Groups(local)
    values = draws(bound, case.model, case.guide, case.x)
    below(values, case.evidence)
    assert values.mean() > draws(ELBO(20), case.model, case.guide, case.x).mean()


def test_the_bound_of_what_groups_share_is_nested():
    """E[log p(mu) / q(mu) + sum_n log mean_k w_nk(mu)], by hand."""
    case = Groups(local=True)
    structure = IWAE(7).structure(case.model, case.guide, case.x)
    assert structure.shared == ["mu"]
    assert (
        str(structure)
        == "a weight for each index of 'data', given one draw of mu for all particles"
    )
    torch.manual_seed(0)
    mu = 0.3 + 0.6 * torch.randn(5000, 1, 3)
    z = case.x / 3 + torch.randn(5000, 7, 12)
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(
        mu[..., case.group] + z, 1.0
    ).log_prob(case.x)
    log_w = log_w - dist.Normal(case.x / 3, 1.0).log_prob(z)
    exact = (dist.Normal(0.0, 1.0).log_prob(mu) - dist.Normal(0.3, 0.6).log_prob(mu)).sum(
        (1, 2)
    )
    exact = exact + (log_w.logsumexp(1) - math.log(7)).sum(1)
    found = draws(IWAE(7), case.model, case.guide, case.x, count=400)
    error = (exact.var() / len(exact) + found.var() / len(found)).sqrt()
    assert (exact.mean() - found.mean()).abs() < 4 * error


def test_a_hidden_dependence_is_found_where_its_weight_is_zero():
    """A head that starts at zero hides what it will depend on from every comparison of
    numbers.
    """

    def model(x):
        with pyro.plate("groups", 2):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 0.0 * mu.sum(-1, keepdim=True), 1.0), obs=x)

    def guide(x):
        with pyro.plate("groups", 2):
            pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert IWAE(5).structure(model, guide, torch.zeros(4)).shared == ["mu"]


def test_crossed_plates_have_one_weight():
    def model(x):
        rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1)
        with rows:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with columns:
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        if x is not None:
            with rows, columns:
                pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    x = torch.arange(6.0).reshape(3, 2) / 3
    index = torch.arange(6)
    covariance = (
        (index[:, None] // 2 == index // 2) * 1.0
        + (index[:, None] % 2 == index % 2) * 1.0
        + torch.eye(6)
    )
    evidence = dist.MultivariateNormal(torch.zeros(6), covariance).log_prob(x.flatten()).item()
    values = draws(IWAE(200), model, lambda x: model(None), x)
    below(values, evidence)
    assert values.mean() > evidence - 0.2


# --- data points without vectorized plates
# --------------------------------------------------------------------------


def test_sequential_plates_have_log_likelihoods():
    def model(x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z{i}", dist.Normal(x[i] / 2, 0.5**0.5))

    x = torch.tensor([0.0, 1.0, -2.0])
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(
        evaluate.log_likelihood(model, guide, x, num_particles=5), exact
    )
    torch.testing.assert_close(evaluate.elbo(model, guide, x, analytic_kl=False).elbo, exact)
    assert IWAE(5).loss(model, guide, x) == pytest.approx(-exact.sum().item(), rel=1e-5)


def test_a_program_without_plates_is_one_data_point():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    x = torch.tensor([0.0, 2.0])
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum().item()
    assert IWAE(5).loss(model, guide, x) == pytest.approx(-exact, rel=1e-5)
    with pytest.raises(PairError, match="no site lies in a plate"):
        evaluate.log_likelihood(model, guide, x)


# --- programs that cannot take a plate of particles
# -----------------------------------------------------------------


def _pair(likelihood):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(likelihood(x, z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))

    return model, guide


def _masked(x, z):
    mean = torch.zeros_like(x)
    mean[x > 0] = z[x > 0]  # of the shape of x alone
    return mean


NAIVE = {
    "a view": lambda x, z: z.view(len(x), -1),
    "a sum over the rows' dimension": lambda x, z: z - z.mean(1, keepdim=True),
    "a masked index": _masked,
    "one-dimensional batch normalization": lambda x, z: nn.BatchNorm1d(2).eval()(z),
}


@pytest.mark.parametrize("likelihood", NAIVE.values(), ids=NAIVE)
def test_particles_run_one_after_another_where_they_cannot_run_together(likelihood):
    model, guide = _pair(likelihood)
    x = torch.tensor([[0.5, -1.0], [2.0, 0.3], [0.1, 0.2]])
    bound = IWAE(4)
    with pytest.warns(
        UserWarning, match="one after another, as with vectorize_particles=False"
    ):
        assert not bound.structure(model, guide, x).vectorized
    torch.manual_seed(0)
    found = bound.loss(model, guide, x)
    torch.manual_seed(0)
    assert found == pytest.approx(IWAE(4, vectorize_particles=False).loss(model, guide, x))
    with pytest.warns(UserWarning, match="one after another"):
        together = draws(ELBO(5), model, guide, x, count=50)
    apart = draws(ELBO(5, vectorize_particles=False), model, guide, x, count=50)
    torch.testing.assert_close(together, apart)
    estimate = evaluate.log_likelihood(model, guide, x, num_particles=50, seed=0)
    assert estimate.shape == (3,) and estimate.isfinite().all()


@pytest.mark.parametrize(
    "bound, remedy",
    [
        (PIWAE(2, 2), "take IWAE"),
        (FDivergence("chi2", 2), "take IWAE"),
        (TVO(2), "take IWAE"),
        (FIVO(2), "let its shapes broadcast"),
        (IWAE(2, gradient="dreg"), "leave it out"),
        (IWAE(2, chunk_size=1), "leave it out"),
        (ELBO(2, gradient="disarm"), "take gradient='pathwise'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bounds_that_run_all_particles_together_name_a_way_out(bound, remedy):
    model, guide = _pair(NAIVE["a view"])
    x = torch.tensor([[0.5, -1.0], [2.0, 0.3]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of particles that run one after another, as none does
        with pytest.raises(PairError, match=f"plate of particles: {remedy}"):
            bound.loss(model, guide, x)


class _Normalized(nn.Module):
    """A prior whose flow normalizes the rows of a batch while it is trained."""

    def __init__(self):
        super().__init__()
        self.flow = BatchNorm(2)

    def forward(self, x):
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def _near(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))


@pytest.mark.parametrize("bound", [ELBO, IWAE])
def test_particles_run_one_after_another_where_training_mode_needs_it(bound):
    model = _Normalized()
    x = torch.tensor([[0.5, -1.0], [2.0, 0.3], [0.1, 0.2]])
    known = bound(3)
    with pytest.warns(UserWarning, match="one after another"):
        assert not known.structure(model, _near, x).vectorized
    assert torch.equal(model.flow.moving_mean, torch.zeros(2))
    torch.manual_seed(0)
    found = known.loss(model, _near, x)
    torch.manual_seed(0)
    apart = bound(3, vectorize_particles=False).loss(_Normalized(), _near, x)
    assert found == pytest.approx(apart)
    assert known.structure(model.eval(), _near, x).vectorized


def test_rows_that_depend_on_each_other_have_one_weight():
    """What a plate declares independent, and the program mixes."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.roll(1, -1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.roll(-1) / 2, 0.8))

    x = torch.tensor([0.5, 1.0, -1.0])
    assert IWAE(10).structure(model, guide, x).joint
    below(draws(IWAE(10), model, guide, x), dist.Normal(0.0, 2**0.5).log_prob(x).sum().item())


def _seasonal(lag, noise=0.0):
    """Rows that are moving averages of latent variables of other rows."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z + torch.roll(z, lag, -1) + noise * torch.randn(len(x))
            pyro.sample("x", dist.Normal(mean, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    mixing = torch.eye(8) + torch.roll(torch.eye(8), lag, 0)
    evidence = dist.MultivariateNormal(
        torch.zeros(8), mixing @ mixing.T + (0.25 + noise**2) * torch.eye(8)
    )
    return model, guide, evidence


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("lag", [1, 2, 4])
def test_rows_that_depend_on_each_other_at_any_distance(lag, noise):
    """Also beside random numbers that are no sites."""
    model, guide, evidence = _seasonal(lag, noise)
    x = torch.tensor([1.0, 2, -1, -2, 2, 1, -2, -1])
    for seed in range(5):
        torch.manual_seed(seed)
        assert IWAE(8).structure(model, guide, x).joint
    below(draws(IWAE(64), model, guide, x, count=20), evidence.log_prob(x).item())
    with pytest.raises(PairError, match=r"share \['z'\]"):
        evaluate.log_likelihood(model, guide, x)


def test_crossed_plates_of_a_process():
    """Dependence along one plate of two, whose rows are an even number of indices apart."""
    covariance = torch.exp(
        -0.5 * ((torch.arange(5.0)[:, None] - torch.arange(5.0)) / 1.5) ** 2
    ) + 1e-3 * torch.eye(5)

    def half(observed):
        def run(x):
            with pyro.plate("time", 5, dim=-2), pyro.plate("series", 2, dim=-1):
                e = pyro.sample("e", dist.Normal(0.0, 1.0))
                if observed:
                    pyro.sample(
                        "x", dist.Normal(torch.linalg.cholesky(covariance) @ e, 0.3), obs=x
                    )

        return run

    x = torch.tensor([[2.0, -1.5], [-1, 1.5], [1.5, -1], [-2, 2], [1, -1]])
    evidence = (
        dist.MultivariateNormal(torch.zeros(5), covariance + 0.09 * torch.eye(5))
        .log_prob(x.T)
        .sum()
        .item()
    )
    assert IWAE(4).structure(half(True), half(False), x).joint
    below(draws(IWAE(64), half(True), half(False), x, count=20), evidence)


def test_rows_that_depend_on_each_other_under_a_flow_without_an_inverse():
    planar = dist.transforms.Planar(1)
    for parameter in planar.parameters():
        parameter.data.fill_(0.1)

    def half(observed):
        def run(x):
            with pyro.plate("data", len(x)):
                base = dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1)
                z = pyro.sample(
                    "z", base if observed else dist.TransformedDistribution(base, [planar])
                )[..., 0]
                if observed:
                    pyro.sample("x", dist.Normal(z + torch.roll(z, 1, -1), 0.5), obs=x)

        return run

    x = torch.tensor([2.0, -2.0] * 3)
    assert IWAE(4).structure(half(True), half(False), x).joint


def test_a_small_dependence_of_large_weights():
    """Rows of a thousand numbers, whose weights move by less than a three hundredth."""
    x = 10 * torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))

    def half(observed):
        def run(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                mean = 0.5 * (z + torch.roll(z, 1, -1))
                if observed:
                    law = dist.Normal(mean[..., None], 10.0).expand([*mean.shape, 1000])
                    pyro.sample("x", law.to_event(1), obs=x)

        return run

    for seed in range(10):
        torch.manual_seed(seed)
        assert IWAE(4).structure(half(True), half(False), x).joint


def test_a_bound_looks_again_when_a_switch_is_thrown():
    def model(x, lag):
        return _seasonal(lag)[0](x)

    def guide(x, lag):
        return _seasonal(lag)[1](x)

    bound, x = IWAE(4), torch.zeros(8)
    assert not bound.structure(model, guide, x, 0).joint
    assert bound.structure(model, guide, x, 1).joint

    def listed(xs):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0)) if len(xs) > 1 else 0.0
        for i, x in enumerate(xs):
            with pyro.plate(f"data_{i}", len(x)):
                pyro.sample(f"x_{i}", dist.Normal(mu, 1.0), obs=x)

    def listed_guide(xs):
        if len(xs) > 1:
            pyro.sample("mu", dist.Normal(0.0, 1.0))

    for xs in ([x], [x, x]):
        assert math.isfinite(bound.loss(listed, listed_guide, xs))


def test_an_autoguide_in_which_variables_depend_on_each_other():
    def model(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    pyro.clear_param_store()
    guide, x = AutoStructured(model), torch.tensor([0.5, -1.0, 2.0])
    guide(x)
    torch.manual_seed(0)
    theirs = Trace_ELBO().loss(model, guide, x)
    torch.manual_seed(0)
    assert ELBO().loss(model, guide, x) == pytest.approx(theirs, rel=1e-5)
    pyro.clear_param_store()


# --- the terms of log p and log q
# -----------------------------------------------------------------------------------


def _local(guide_extra=lambda x, z: None, mask=None):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 1.0))
            guide_extra(x, z)

    return model, guide


X = torch.tensor([0.0, 2.0, -1.0])


@pytest.mark.parametrize("has_rsample", [True, False])
def test_factors_of_the_guide_are_part_of_log_q(has_rsample):
    model, guide = _local(lambda x, z: pyro.factor("f", -2.0 * z**2, has_rsample=has_rsample))
    for bound in (ELBO(analytic_kl=False), IWAE(1)):
        for seed in range(3):
            torch.manual_seed(seed)
            theirs = Trace_ELBO().loss(model, guide, X)
            torch.manual_seed(seed)
            assert bound.loss(model, guide, X) == pytest.approx(theirs, rel=1e-6)
    torch.manual_seed(0)
    weights = log_weights(model, guide, X, num_particles=4)
    plain = log_weights(*_local(), X, num_particles=4)
    assert weights.shape == plain.shape and not torch.allclose(weights, plain)


def test_the_guide_may_not_draw_what_is_conditioned_on():
    model, guide = _local()
    given = poutine.condition(model, {"z": torch.zeros(3)})
    for call in (ELBO().loss, IWAE(3).loss, lambda *pair: evaluate.log_likelihood(*pair)):
        with pytest.raises(
            PairError, match=r"draws \['z'\], which the model observes: hide them"
        ):
            call(given, guide, X)
    exact = (
        dist.Normal(0.0, 1.0).log_prob(torch.zeros(3)).sum()
        + dist.Normal(0.0, 1.0).log_prob(X).sum()
    )
    assert ELBO().loss(given, poutine.block(guide, hide=["z"]), X) == pytest.approx(
        -exact.item(), rel=1e-6
    )


@pytest.mark.parametrize("guide", [AutoNormal, AutoDiagonalNormal])
def test_autoguides_keep_their_jacobian(guide):
    """Closed forms of a Delta would drop its log density: the exact posterior is Gamma(5,
    4.5).
    """
    x = torch.tensor([0.5, 1.0, 2.0])

    def model(x):
        r = pyro.sample("r", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(r), obs=x)

    pyro.clear_param_store()
    guide = guide(model, init_scale=0.5)
    guide(x)
    for bound in (ELBO(), IWAE(1)):
        torch.manual_seed(0)
        theirs = Trace_ELBO().loss(model, guide, x)
        torch.manual_seed(0)
        assert bound.loss(model, guide, x) == pytest.approx(theirs, rel=1e-5)
    evidence = 2 * math.log(1.0) + math.lgamma(5) - math.lgamma(2) - 5 * math.log(4.5)
    values = draws(IWAE(200), model, guide, x, count=50)
    below(values, evidence)
    assert values.mean() > evidence - 0.02
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), ELBO(num_particles=20))
    for _ in range(300):
        svi.step(x)
    log_r = torch.stack([guide(x)["r"] for _ in range(4000)]).detach().log()
    # Of the best LogNormal: E[log r] = 0.002 of the posterior moved by its skewness, here far
    # from -0.242.
    assert log_r.mean().abs() < 0.05
    pyro.clear_param_store()


FIRST, SECOND = torch.tensor([True, False, True]), torch.tensor([True, True, False])


@pytest.mark.parametrize(
    ("p_mask", "q_mask"),
    [
        (None, None),
        (FIRST, FIRST),
        (FIRST, SECOND),
        (FIRST, None),
        (None, SECOND),
        (False, False),
        (False, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.filterwarnings("ignore:.*mask 'z' in different places")
def test_masks_of_distributions_in_closed_forms(p_mask, q_mask, inside):
    """E[m_q log q - m_p log p], of the whole row or of elements inside an event."""

    def masked(law, mask):
        law = law if mask is None else law.mask(mask)
        return law.to_event(1) if inside else law

    def half(law, mask, observed):
        def run(x):
            with (
                pyro.plate("copies", 4000, dim=-1 if inside else -2),
                pyro.plate("data", 3) if not inside else plain,
            ):
                z = pyro.sample("z", masked(law.expand([4000, 3]), mask))
                if observed:
                    pyro.sample("x", masked(dist.Normal(z, 1.0), None), obs=x)

        return run

    from contextlib import nullcontext

    plain = nullcontext()
    x = torch.zeros(4000, 3)
    q = dist.Normal(torch.tensor([0.3, -0.5, 1.0]), 0.7)
    p = dist.Normal(0.3, 2.0)
    pair = half(p, p_mask, True), half(q, q_mask, False)
    for bound in (ELBO(), ELBO(analytic_kl=False)):
        torch.manual_seed(0)
        found = bound.loss(*pair, x) / 4000
        torch.manual_seed(0)
        theirs = Trace_ELBO().loss(*pair, x) / 4000
        noise = 4 * (3 * 3.0 / 4000) ** 0.5
        assert found == pytest.approx(theirs, abs=noise if bound.analytic_kl else 1e-4)


def test_one_weight_has_any_scales():
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = poutine.scale(_local()[1], scale=0.3)
    torch.manual_seed(0)
    theirs = Trace_ELBO().loss(model, guide, X)
    torch.manual_seed(0)
    assert IWAE(1).loss(model, guide, X) == pytest.approx(theirs, rel=1e-6)
    with pytest.raises(PairError, match="different scales"):
        IWAE(2).loss(model, guide, X)
    # Of single data points no scale counts.
    exact = dist.Normal(0.0, 2**0.5).log_prob(X)
    estimate = evaluate.log_likelihood(
        model, guide, X, num_particles=20_000, errors=True, seed=0
    )
    assert ((estimate.log_likelihood - exact).abs() < 4 * estimate.standard_error).all()


def test_one_weight_of_all_data_has_the_scale_of_the_whole_outside():
    case = Groups()
    scaled = [poutine.scale(half, scale=3.0) for half in (case.model, case.guide)]
    torch.manual_seed(0)
    once = IWAE(5).loss(case.model, case.guide, case.x)
    torch.manual_seed(0)
    assert IWAE(5).loss(*scaled, case.x) == pytest.approx(3 * once, rel=1e-5)


def test_short_batches_of_any_size_have_one_weight_of_all_data():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 277, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))

    warnings.simplefilter("ignore")
    for size in range(1, 277, 4):  # 277 / 21 * (21 / 277) is not 1
        assert math.isfinite(IWAE(2).loss(model, guide, torch.zeros(size)))


# --- enumeration
# ----------------------------------------------------------------------------------------------------


def mixture(x):
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample(
            "x", dist.Normal(loc[..., c] if loc.dim() == 1 else loc[..., 0, c], 1.0), obs=x
        )


def test_sites_of_the_model_are_summed_out_as_pyro_does():
    model = config_enumerate(mixture)

    def guide(x):
        loc = pyro.param("loc_q", torch.tensor([-1.0, 1.0]))
        with pyro.plate("components", 2):
            pyro.sample("loc", dist.Normal(loc, 0.5))

    pyro.clear_param_store()
    for seed in range(3):
        torch.manual_seed(seed)
        theirs = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, X)
        (gradient,) = torch.autograd.grad(theirs, [pyro.param("loc_q").unconstrained()])
        torch.manual_seed(seed)
        ours, terms = ELBO(analytic_kl=False).loss_and_terms(model, guide, X)
        torch.testing.assert_close(ours, theirs)
        (own,) = torch.autograd.grad(ours, [pyro.param("loc_q").unconstrained()])
        torch.testing.assert_close(own, gradient)
        torch.testing.assert_close(terms["kl"] - terms["reconstruction"], theirs.detach())
        torch.manual_seed(seed)
        assert ELBO(analytic_kl=False).loss(model, guide, X) == pytest.approx(
            theirs.item(), rel=1e-6
        )
    for bound in (IWAE(1), Renyi(0.5, 1)):
        bound.loss(model, guide, X)  # finds the structure
        torch.manual_seed(seed)
        assert bound.loss(model, guide, X) == pytest.approx(theirs.item(), rel=1e-6)
    with pytest.raises(PairError, match="share"):
        evaluate.log_likelihood(model, guide, X)
    pyro.clear_param_store()


def test_a_mask_of_what_a_guide_enumerates_leaves_its_probabilities():
    """It says which densities count, and not how likely a value is."""
    seen, means = torch.tensor([True, False, True]), torch.tensor([-1.0, 2.0])

    def half(observed):
        def run(x):
            with pyro.plate("data", len(x)):
                law = dist.Categorical(torch.tensor([0.4, 0.6])).mask(seen)
                c = pyro.sample("c", law, infer={} if observed else {"enumerate": "parallel"})
                if observed:
                    pyro.sample("x", dist.Normal(means[c], 1.0), obs=x)

        return run

    exact = (
        torch.tensor([0.4, 0.6]) * dist.Normal(means, 1.0).log_prob(X.unsqueeze(-1))
    ).sum()
    assert -ELBO().loss(half(True), half(False), X) == pytest.approx(exact.item(), rel=1e-5)


def test_single_data_points_have_the_elbo_of_what_is_summed_out():
    means = torch.tensor([-2.0, 0.0, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3))
            z = pyro.sample("z", dist.Normal(means[c], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x * 0.8, 0.5))
            logits = z.unsqueeze(-1) * means
            pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    x = torch.tensor([1.0, -2.0, 0.3])
    bound = evaluate.elbo(model, guide, x, num_particles=4000, seed=0)
    assert bound.elbo.shape == bound.reconstruction.shape == (3,)
    whole = draws(ELBO(500), model, guide, x, count=20)
    error = whole.std() / 20**0.5 * (1 + (20 * 500 / 4000) ** 0.5)
    assert (bound.elbo.sum() - whole.mean()).abs() < 4 * error
    exact = (dist.Normal(means, 1.25**0.5).log_prob(x.unsqueeze(-1)) - math.log(3)).logsumexp(
        -1
    )
    assert (bound.elbo < exact).all()
    assert (
        evaluate.reconstruction(model, guide, x).shape
        == evaluate.anomaly_score(model, guide, x).shape
        == (3,)
    )


# --- weights of zero, and masked steps
# ------------------------------------------------------------------------------


def test_weights_of_zero_leave_gradients_finite_and_unbiased():
    """A Bernoulli code, one of whose values cannot have made x: the gradient against
    enumeration.
    """
    logit = torch.tensor(0.3, requires_grad=True)
    x = torch.tensor([1.5, 0.3])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Uniform(-1.0 + 0 * z, 1.0 + z, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logit.expand(len(x))))

    found = []
    for seed in range(50):
        torch.manual_seed(seed)
        loss = IWAE(4).differentiable_loss(model, guide, x[:1])
        (gradient,) = torch.autograd.grad(loss, [logit])
        assert gradient.isfinite() and not loss.isnan()
        torch.manual_seed(seed)
        loss = IWAE(4, num_groups=200).differentiable_loss(model, guide, x[1:])
        found.append(torch.autograd.grad(loss, [logit])[0])
    ones = torch.arange(5)
    log_p = math.log(0.5) + torch.tensor([math.log(1 / 2), math.log(1 / 3)])
    log_q = torch.stack([nn.functional.logsigmoid(-logit), nn.functional.logsigmoid(logit)])
    log_w = log_p - log_q
    weights = ((4 - ones) * log_w[0].exp() + ones * log_w[1].exp()) / 4
    chance = (
        torch.tensor([math.comb(4, k) for k in range(5)])
        * (ones * log_q[1] + (4 - ones) * log_q[0]).exp()
    )
    (exact,) = torch.autograd.grad(-(chance * weights.log()).sum(), [logit])
    assert_within(torch.stack(found), exact)


def test_free_bits_where_a_step_is_masked_for_all_rows():
    torch.manual_seed(0)
    cell = Recurrence(nn.GRUCell(3 + 2, 8))
    p = models.VRNN(
        cell,
        Conditional(dist.Normal, MLP(8, [8]), 2),
        Conditional(dist.Normal, MLP([2, 8], [8]), 3),
    )
    q = guides.VRNN(cell, Conditional(dist.Normal, MLP([3, 8], [8]), 2))
    x, lengths = torch.randn(6, 5, 3), torch.tensor([3, 2, 3, 1, 3, 2])
    losses = []
    for data in (x, x[:, :3]):
        torch.manual_seed(1)
        losses.append(ELBO(free_bits=0.1).loss(p, q, data, lengths))
    assert math.isfinite(losses[0])
    plain = []
    for data in (x, x[:, :3]):
        torch.manual_seed(1)
        plain.append(ELBO().loss(p, q, data, lengths))
    # Draws of masked steps move the noise of the others, and nothing else.
    assert losses[0] >= plain[0] and losses[0] - plain[0] < 6 * 3 * 2 * 0.1


@pytest.mark.parametrize("rows", [3, 50])
@pytest.mark.parametrize("family", [dist.Normal, dist.Bernoulli])
def test_two_rows_that_depend_on_each_other_are_always_seen(rows, family):
    """Row 0 sees the draw of row 1, and no other row sees another one's."""
    x = torch.linspace(-1.0, 2.0, rows)
    seen = torch.arange(rows)
    seen[0] = 1
    prior = dist.Normal(0.0, 1.0) if family is dist.Normal else dist.Bernoulli(0.5)

    def model(x):
        with pyro.plate("data", rows):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z[..., seen], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", rows):
            pyro.sample("z", prior)

    for seed in range(60):
        torch.manual_seed(seed)
        assert IWAE(4).structure(model, guide, x).joint, seed


# --- dependences without a derivative
# -----------------------------------------------------------------------------------------


OF_GROUP = torch.tensor([0, 0, 1, 1, 1])
CENTRES = torch.tensor([-1.0, 1.0])
HIDDEN = {
    "a comparison": (dist.Normal(0.0, 1.0), lambda z: (z > 0).float()),
    "a detached draw": (dist.Normal(0.0, 1.0), lambda z: z.detach()),
    "an index that is a float": (dist.Bernoulli(0.3), lambda z: CENTRES[z.long()]),
    "an index": (dist.Categorical(torch.tensor([0.7, 0.3])), lambda z: CENTRES[z]),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_data_that_see_the_draws_of_a_group_without_a_derivative(kind):
    prior, function = HIDDEN[kind]
    y = torch.tensor([0.5, -0.4])
    x = torch.tensor([0.3, -0.2, 1.0, 1.4, 0.8])

    def model():
        with pyro.plate("groups", 2):
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z.float(), 1.0), obs=y)
        with pyro.plate("data", 5):
            pyro.sample("x", dist.Normal(function(z)[..., OF_GROUP], 1.0), obs=x)

    def guide():
        with pyro.plate("groups", 2):
            pyro.sample("z", prior)

    values = torch.arange(2) if prior.support.is_discrete else torch.linspace(-8, 8, 4001)
    cell = 0.0 if prior.support.is_discrete else math.log(16 / 4000)
    values = values.to(prior.sample().dtype).unsqueeze(-1)
    joint = prior.log_prob(values) + dist.Normal(values.float(), 1.0).log_prob(y)
    seen = dist.Normal(function(values), 1.0).log_prob(x)
    joint = joint.index_add(1, OF_GROUP, seen)
    evidence = (joint.logsumexp(0) + cell).sum()

    bound = IWAE(4)
    ratios = (draws(bound, model, guide, count=400) - evidence).exp()
    assert_within(ratios, 1.0, "weights of all data have the mean p(x)")


@pytest.mark.parametrize(
    "prior", [dist.Bernoulli(0.4), dist.Categorical(torch.tensor([0.6, 0.4]))]
)
def test_a_discrete_variable_that_data_points_share_has_the_nested_bound(prior):
    x = torch.tensor([0.3, -0.2, 1.0, 1.4])

    def model(x):
        shared = pyro.sample("shared", prior)
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + shared.float(), 1.0), obs=x)

    def guide(x):
        shared = pyro.sample("shared", prior)
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal((x - shared.float()) / 2, 0.5**0.5))

    # The guide is the posterior given the shared variable, so the bound has no other noise.
    given = [dist.Normal(float(value), 2**0.5).log_prob(x).sum().item() for value in (0, 1)]
    for value in draws(IWAE(5), model, guide, x, count=10).tolist():
        assert min(abs(value - each) for each in given) < 1e-4
    structure = IWAE(5).structure(model, guide, x)
    assert structure.shared == ["shared"] and structure.vectorized


def test_a_discrete_index_of_a_data_point_is_its_own():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(mean + CENTRES[c.long()], 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(0.5))

    structure = IWAE(5).structure(model, guide, torch.zeros(3))
    assert not structure.joint and structure.shared == ["mean"]


def test_particles_that_broadcast_against_each_other_run_one_after_another():
    """``keepdim`` keeps a dimension of the event, to the right of the particles."""

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            largest = w.argmax(-1, keepdim=True).float()
            pyro.sample("x", dist.Normal(z + largest, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    for seed in range(10):  # of which some draw the same argument twice
        torch.manual_seed(seed)
        with pytest.warns(UserWarning, match="one after another"):
            assert not ELBO(5).structure(model, guide, torch.zeros(4)).vectorized

"""Checks of guides against exact posteriors, planted faults and closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from tarspyro import Conditional, evaluate, guides, models
from tarspyro.distributions import default_prior
from tarspyro.evaluate.calibration import pareto_index
from tarspyro.evaluate.simulation import simulate
from tarspyro.infer import PairError
from tarspyro.nn import MLP

from ..exact_pairs import FAMILIES, PLANTED, exact, planted


def check(pair, simulations=500, **options):
    return evaluate.check_guide(
        pair.model,
        pair.guide,
        pair.data,
        num_simulations=simulations,
        annealing=False,
        seed=1,
        **options,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exact_guide_is_calibrated(family):
    found = check(exact(family, 1), 100 if family == "hierarchical" else 600)
    assert found.verdict == "calibrated" and found.calibrated, found
    assert abs(found.divergence.value) < 1e-3
    assert found.pareto_k is None or float(found.pareto_k.abs().max()) == 0.0
    for site in found.sites.values():
        for unit in site.units:
            num = len(site.ranks)
            for level, share in zip((0.5, 0.8, 0.95), unit.coverage, strict=True):
                assert abs(share - level) < 4.5 * (level * (1 - level) / num) ** 0.5


# One of each kind; all of them are in benchmarks/check_guide.py.
FAULTS = [
    ("linear Gaussian", "swapped units"),
    ("linear Gaussian", "mask forgotten"),
    ("linear Gaussian", "wrong condition"),
    ("Gamma-Poisson", "scale 1.25"),
    ("Gamma-Poisson", "other prior"),
    ("mixture", "wrong condition"),
    ("mixture", "collapsed unit"),
    ("mixture", "biased gradient"),
    ("sequential", "wrong row"),
    ("sequential", "shift 0.3"),
]


@pytest.mark.parametrize("family, fault", FAULTS)
def test_a_planted_fault_is_found(family, fault):
    assert fault in PLANTED[family]
    assert not check(planted(family, fault, 0), 600).calibrated


WORDS = {
    "scale 0.8": "too narrow",
    "scale 1.25": "too wide",
    "shift 0.3": "shifted",
    "collapsed unit": "collapsed",
}


@pytest.mark.parametrize("fault, word", WORDS.items())
def test_the_verdict_names_the_fault(fault, word):
    found = check(planted("linear Gaussian", fault, 0), 800)
    assert found.verdict == word
    assert word in repr(found)
    if fault == "collapsed unit":
        assert [unit.verdict for unit in found.sites["z"].units][0] == "collapsed"


def test_faults_of_shared_latent_variables_are_found():
    found = check(planted("hierarchical", "wrong row", 0), 150, num_draws=40)
    assert found.sites["z"].verdict == "shifted" and found.pareto_k is None


def gaussian(scale, shift):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + shift, scale))

    return model, guide


def test_a_guide_of_a_heavy_kl_is_too_wide():
    """The optimum of an ELBO with a weight of 5 on the KL, whose mean is nearer the prior's."""
    model, _ = gaussian(1.0, 0.0)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 6, (5 / 6) ** 0.5))

    options = {"num_simulations": 500, "annealing": False, "seed": 1}
    found = evaluate.check_guide(model, guide, torch.zeros(20), **options)
    assert found.verdict == "too wide"


def test_sizes_are_those_of_the_closed_form():
    right = 0.5**0.5
    scale = 0.8 * right
    shift = 0.2
    found = evaluate.check_guide(
        *gaussian(scale, shift), torch.zeros(20), num_simulations=1000, num_draws=200, seed=0
    )
    (unit,) = found.sites["z"].units
    # z* - shift has this mean and variance, in units of the guide.
    error = 4 / 1000**0.5
    assert abs(unit.shift - shift / scale) < error * right / scale
    assert abs(unit.width - 0.8) < 0.8 * error / 2**0.5 + 0.01  # the scale is an estimate

    q = dist.Normal(shift, scale)
    p = dist.Normal(0.0, right)
    one = float(torch.distributions.kl_divergence(q, p))
    other = float(torch.distributions.kl_divergence(p, q))
    assert abs(found.divergence.value - one - other) < 4 * found.divergence.standard_error
    assert abs(found.gap.value - one) < 4 * found.gap.standard_error
    above = (right * torch.randn(200_000) - shift) / scale
    share = float(
        (above.abs() < dist.Normal(0.0, 1.0).icdf(torch.tensor(0.9))).double().mean()
    )
    assert abs(unit.coverage[1] - share) < 4 * (share * (1 - share) / 1000) ** 0.5 + 0.01


def test_the_pareto_index_is_that_of_the_tail():
    torch.manual_seed(0)
    for k in (0.3, 0.7):
        log_w = k * -torch.rand(20_000, dtype=torch.double).log()  # Pareto with index k
        assert abs(pareto_index(log_w) - k) < 4 * (1 + k) / (3 * 20_000**0.5) ** 0.5
    assert pareto_index(torch.zeros(500)) == 0.0


def test_a_guide_of_one_data_set_cannot_be_checked():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    guide = AutoNormal(model)
    x = torch.randn(10)
    guide(x)
    found = evaluate.check_guide(model, guide, x, num_simulations=100, num_draws=20, seed=0)
    assert found.verdict == "cannot say"
    assert "one data set" in repr(found)


def test_a_model_that_generates_needs_no_data():
    torch.manual_seed(0)
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, [8]), 5))
    q = guides.VAE(Conditional(dist.Normal, MLP(5, [8]), 2))
    state = torch.get_rng_state()
    found = evaluate.check_guide(p, q, num_simulations=300, annealing=False, seed=0)
    assert torch.equal(state, torch.get_rng_state())
    assert found.sites["z"].shape == (2,) and not found.calibrated
    assert found.sites["z"].unit_name(1) == "z[1]"
    with pytest.raises(ValueError, match="x must be given"):
        evaluate.check_guide(*gaussian(1.0, 0.0))


def test_masked_latent_values_are_left_out():
    def model(x, lengths):
        with pyro.plate("data", len(x)):
            for t in range(2):
                with pyro.poutine.mask(mask=lengths > t):
                    z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x, lengths):
        with pyro.plate("data", len(x)):
            for t in range(2):
                with pyro.poutine.mask(mask=lengths > t):
                    pyro.sample(f"z_{t}", dist.Normal(x[:, t] / 2, 0.5**0.5))

    data = (torch.zeros(40, 2), torch.tensor([1, 2]).repeat(20))
    found = evaluate.check_guide(
        model, guide, data, num_simulations=400, annealing=False, seed=0
    )
    assert found.calibrated, found
    assert not found.sites["z_0"].ranks.isnan().any()
    assert found.sites["z_1"].ranks.isnan().sum() == 200


class TestSimulate:
    def test_what_a_mask_leaves_out_stays_as_given(self):
        pair = exact("linear Gaussian", 0)
        x, y = simulate(pair.model, (torch.full((30, 4), 7.0), torch.zeros(30, 2))).arguments
        assert (x[:, -1] == 7.0).all() and (x[:, :-1] != 7.0).all()
        assert (y == 0.0).all()

    def test_states_that_are_computed_before_the_first_step(self):
        torch.manual_seed(0)

        def model(x):
            before = 0.8 * torch.cat([torch.zeros(len(x), 1), x[:, :-1]], 1)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(before, 1.0).to_event(1), obs=x)

        (x,) = simulate(model, (torch.zeros(4000, 6),)).arguments
        for t in range(6):
            variance = sum(0.8 ** (2 * s) for s in range(t + 1))
            assert abs(x[:, t].var() - variance) < 4 * variance * (2 / 4000) ** 0.5

    def test_what_cannot_be_simulated_is_refused(self):
        def transformed(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=2 * x + 1)

        with pytest.raises(PairError, match="neither an argument nor a part of one"):
            simulate(transformed, (torch.randn(3),))

        def circular(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(x, 1.0), obs=x)

        with pytest.raises(PairError, match="depends on the data of that same site"):
            simulate(circular, (torch.randn(3),))

    def test_the_given_data_stays(self):
        pair = exact("sequential", 0)
        x = torch.zeros(5, 3)
        (drawn,) = simulate(pair.model, (x,)).arguments
        assert (x == 0).all() and (drawn != 0).all()


def test_a_site_that_the_model_sums_out_is_refused():
    def model(x):
        with pyro.plate("components", 3):
            mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            c = pyro.sample(
                "c", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"}
            )
            pyro.sample("x", dist.Normal(mu[c], 0.5), obs=x)

    def guide(x):
        with pyro.plate("components", 3):
            pyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.raises(PairError, match=r"enumerates \['c'\].*draw these sites in the guide"):
        evaluate.check_guide(model, guide, torch.zeros(20), num_simulations=100)


def test_a_factor_that_weighs_draws_is_refused():
    """It would call the exact posterior shifted. A constant one changes nothing."""

    def model_with(factor):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.factor("weight", factor(z))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return model

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.zeros(20)
    with pytest.raises(PairError, match=r"by the factor 'weight'.*posterior_kl"):
        evaluate.check_guide(model_with(lambda z: -((z - 2) ** 2)), guide, x)
    constant = model_with(lambda z: torch.full((), 3.0))
    assert evaluate.check_guide(constant, guide, x, seed=0).verdict == "calibrated"

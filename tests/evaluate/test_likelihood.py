"""Log-likelihoods and bounds against closed forms."""

import math
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tarspyro import Conditional, evaluate, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, PairError, log_weights
from tarspyro.infer.traces import InputError
from tarspyro.nn import MLP
from tarspyro.scopes import preserved_rng

from ..programs import LinearGaussian, assert_within


@pytest.fixture
def toy():
    toy = LinearGaussian()
    yield toy


@pytest.fixture(autouse=True)
def _double():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def test_log_likelihood_is_exact_with_the_exact_posterior(toy):
    estimate = evaluate.log_likelihood(
        toy.model, toy.exact_posterior_guide, toy.x, num_particles=7
    )
    torch.testing.assert_close(estimate, toy.log_likelihood(toy.x).detach())


@pytest.mark.parametrize("particles", [1, 5, 50])
def test_the_mean_weight_is_unbiased_for_the_likelihood(toy, particles):
    """exp of the estimate is an unbiased estimate of p(x), whatever the number of particles."""
    draws = torch.stack(
        [
            evaluate.log_likelihood(toy.model, toy.guide, toy.x, num_particles=particles)
            for _ in range(1200 // particles + 60)
        ]
    )
    ratios = (draws - toy.log_likelihood(toy.x).detach()).exp()
    assert_within(ratios, torch.ones(50), errors=5.0)  # 5: fifty comparisons at once


def test_many_particles_reach_the_closed_form(toy):
    estimate = evaluate.log_likelihood(
        toy.model, toy.guide, toy.x, num_particles=20_000, seed=0
    )
    exact = toy.log_likelihood(toy.x).detach()
    spread = torch.stack(
        [
            evaluate.log_likelihood(toy.model, toy.guide, toy.x, num_particles=1000, seed=s)
            for s in range(20)
        ]
    ).std(0)
    assert ((estimate - exact).abs() < 5 * spread / math.sqrt(20) + 1e-9).all()


def test_chunks_change_nothing_but_memory(toy):
    x = toy.x.repeat(2, 1)  # a batch of 100
    sizes = []

    def guide(x):
        trace = pyro.poutine.trace(toy.exact_posterior_guide).get_trace(x)
        sizes.append(len(trace.nodes["z"]["value"]))

    estimate = evaluate.log_likelihood(toy.model, guide, x, num_particles=230)
    assert sizes[-3:] == [100, 100, 30], "all particles are drawn, in chunks of bounded size"
    torch.testing.assert_close(estimate, toy.log_likelihood(x).detach())


class TestPoints:
    """A guide that gives a continuous latent variable one value says nothing of log p(x)."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.01), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x))

    def test_the_density_at_a_point_lies_above_the_evidence(self):
        x = torch.tensor([0.1, 0.2])
        exact = dist.Normal(0.0, 1.0001**0.5).log_prob(x).sum()
        assert -ELBO().loss(self.model, self.guide, x) > exact + 5
        sentence = "gives 'z' a single value, a Delta, .* take evaluate.reconstruction"
        for f in (evaluate.log_likelihood, evaluate.elbo):
            for guide in (self.guide, AutoDelta(self.model)):
                with pytest.raises(PairError, match=sentence):
                    f(self.model, guide, x)
        found = evaluate.reconstruction(self.model, self.guide, x)  # what the sentence says
        torch.testing.assert_close(found, dist.Normal(x, 0.01).log_prob(x))

    def test_a_point_beside_a_variable_with_a_density(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                w = pyro.sample("w", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(w, 0.01), obs=x)

        x = torch.tensor([0.1, 0.2])
        guide = AutoGuideList(model)
        guide.append(AutoNormal(pyro.poutine.block(model, hide=["w"])))
        guide.append(AutoDelta(pyro.poutine.block(model, hide=["z"])))
        with pytest.raises(PairError, match="gives 'w' a single value"):
            evaluate.log_likelihood(model, guide, x)
        guide = AutoNormal(model)  # whose Deltas are functions of what it draws
        assert evaluate.log_likelihood(model, guide, x).isfinite().all()

    def test_probabilities_at_a_point_bound_the_evidence(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        x = torch.tensor([0.1, 0.9])

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(x.round()))

        exact = (
            dist.Normal(0.0, 1.0).log_prob(x).exp() + dist.Normal(1.0, 1.0).log_prob(x).exp()
        ) / 2
        assert (evaluate.log_likelihood(model, guide, x) < exact.log()).all()


def test_compiled_weights_are_those_of_the_pair(toy):
    calls = []

    def guide(x):
        calls.append(len(x))
        return toy.exact_posterior_guide(x)

    x = toy.x.repeat(2, 1)  # a batch of 100
    estimate = evaluate.log_likelihood(
        toy.model, guide, x, num_particles=6000, seed=0, compile=True
    )
    torch.testing.assert_close(estimate, toy.log_likelihood(x).detach())
    drawn = evaluate.log_likelihood(
        toy.model, toy.guide, x, num_particles=1500, seed=0, compile=True, errors=True
    )
    error = (drawn.log_likelihood - toy.log_likelihood(x).detach()) / drawn.standard_error
    assert (error.abs() < 5).all()  # a hundred comparisons at once
    assert error.std() > 0.5
    assert len(calls) < 40, "the chunks after the first few do not run the program"


def test_weights_that_cannot_be_compiled_run_as_they_are(toy):
    def guide(x):
        if float(x.sum()) > 1e9:
            return None
        return toy.exact_posterior_guide(x)

    x = toy.x.repeat(2, 1)
    with pytest.warns(UserWarning, match="reads a value back.*goes on uncompiled"):
        estimate = evaluate.log_likelihood(
            toy.model, guide, x, num_particles=600, compile=True
        )
    torch.testing.assert_close(estimate, toy.log_likelihood(x).detach())


def test_the_standard_error_is_that_of_the_mean_weight(toy):
    """(p^ / p - 1)^2 has the mean that the squared standard error, on the scale of p, is an
    unbiased estimate of.
    """
    count, differences = 200, []
    for seed in range(150):
        estimate = evaluate.log_likelihood(
            toy.model, toy.guide, toy.x, num_particles=count, errors=True, seed=seed
        )
        ratio = (estimate.log_likelihood - toy.log_likelihood(toy.x).detach()).exp()
        variance = (ratio * estimate.standard_error) ** 2 * count / (count - 1)
        differences.append(((ratio - 1) ** 2 - variance).mean())
    assert_within(torch.stack(differences), 0.0)


def test_the_effective_sample_size_is_that_of_the_weights(toy):
    with preserved_rng(0):
        log_w = log_weights(
            toy.model, toy.guide, toy.x, num_particles=150, plate_nesting=1
        ).detach()
    weights = log_w.softmax(0)
    estimate = evaluate.log_likelihood(
        toy.model, toy.guide, toy.x, num_particles=150, errors=True, seed=0
    )
    torch.testing.assert_close(estimate.effective_sample_size, 1 / (weights**2).sum(0))
    torch.testing.assert_close(estimate.standard_error, (weights - 1 / 150).norm(dim=0))
    exact = evaluate.log_likelihood(
        toy.model, toy.exact_posterior_guide, toy.x, num_particles=23, errors=True
    )
    torch.testing.assert_close(exact.effective_sample_size, torch.full((50,), 23.0))
    assert exact.standard_error.max() < 1e-6


class LiveMemory(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if torch.is_tensor(tensor):
                key = object()
                self.live[key] = tensor.nbytes
                weakref.finalize(tensor, self.live.pop, key)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


def test_memory_is_flat_in_the_number_of_particles(toy):
    x = toy.x.repeat(2, 1)  # a batch of 100: one chunk is 100 particles
    peaks = {}
    for count in (100, 1000, 5000):
        with LiveMemory() as memory:
            evaluate.log_likelihood(
                toy.model, toy.guide, x, num_particles=count, errors=True, seed=0
            )
        peaks[count] = memory.peak
    smallest = 100 * 100 * 5 * 8  # of the log-probabilities of the pixels, one particle a row
    assert peaks[100] > smallest
    assert peaks[5000] == peaks[1000] <= peaks[100] + 0.1 * smallest, peaks


def test_elbo_per_point_in_its_two_terms(toy):
    bounds = [evaluate.elbo(toy.model, toy.guide, toy.x) for _ in range(500)]
    assert_within(torch.stack([b.elbo for b in bounds]), toy.elbo(toy.x).detach(), errors=5.0)
    assert_within(
        torch.stack([b.reconstruction for b in bounds]),
        toy.reconstruction(toy.x).detach(),
        errors=5.0,
    )
    torch.testing.assert_close(bounds[0].kl, toy.kl(toy.x).detach())
    many = evaluate.elbo(toy.model, toy.guide, toy.x, num_particles=20_000, analytic_kl=False)
    assert (many.elbo - toy.elbo(toy.x)).abs().max() < 0.5
    torch.testing.assert_close(many.elbo, many.reconstruction - many.kl)


def test_the_bounds_are_ordered(toy):
    bound = evaluate.elbo(toy.model, toy.guide, toy.x, num_particles=2000).elbo.sum()
    few = evaluate.log_likelihood(toy.model, toy.guide, toy.x, num_particles=5).sum()
    many = evaluate.log_likelihood(toy.model, toy.guide, toy.x, num_particles=5000).sum()
    assert bound < few < many


def vae(dropout=0.0):
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), 64)
    )
    return model, guides.VAE(Conditional(dist.Normal, MLP(64, [8], dropout=dropout), 2))


def test_binarized_evaluation_is_of_black_and_white_pixels():
    model, guide = vae()
    x = torch.full((50, 64), 0.5)
    estimate = evaluate.log_likelihood(model, guide, x, num_particles=2, binarize=True, seed=0)
    torch.testing.assert_close(
        estimate,
        evaluate.log_likelihood(model, guide, x, num_particles=2, binarize=True, seed=0),
    )
    assert estimate.std() > 0, "rows differ because their pixels were drawn"


def test_the_seed_gives_the_same_pixels_to_every_pair():
    seen = []
    for family in (dist.Normal, dist.Gamma):
        guide = guides.VAE(Conditional(family, MLP(64, [8]), 2))
        model = models.VAE(
            default_prior(family, 2), Conditional(dist.Bernoulli, MLP(2, [8]), 64)
        )
        guide.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        evaluate.elbo(model, guide, torch.full((250, 64), 0.5), binarize=True, seed=0)
    # what runs before is the check of the data and the guess of the plates, on the first batch
    normal, gamma = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert [len(batch) for batch in normal if len(batch) == 250 % 100] and len(normal) == len(
        gamma
    )
    assert all(torch.equal(a, b) for a, b in zip(normal, gamma, strict=True))


def test_evaluation_after_training_on_real_digits():
    data = digits()
    torch.set_default_dtype(torch.float32)
    data = digits()
    torch.manual_seed(0)
    model, guide = vae()
    history = fit(model, guide, data.train, epochs=3, binarize=True, seed=0, progress=False)
    bound = evaluate.elbo(
        model, guide, data.test, num_particles=20, binarize=True, seed=0
    ).elbo.mean()
    likelihood = evaluate.log_likelihood(
        model, guide, data.test, num_particles=200, binarize=True, seed=0
    ).mean()
    assert bound < likelihood < 0
    assert abs(bound - history["elbo"][-1]) < 3


@pytest.mark.parametrize(
    "estimate", [evaluate.log_likelihood, evaluate.elbo], ids=["log_likelihood", "elbo"]
)
def test_data_outside_the_likelihood_is_not_scored(estimate):
    model, guide = vae()
    x = torch.rand(150, 64).round()
    for bad, message in (
        (x * 255, "divide by 255"),
        (x / 2, "grey values"),
        (x.log().log(), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            estimate(model, guide, bad)
        late = x.clone()
        late[-1] = bad[-1]  # a row that the first batch does not show
        with pytest.raises(InputError, match=message):
            estimate(model, guide, late)


def test_errors():
    model, guide = vae()
    with pytest.raises(ValueError, match="num_particles"):
        evaluate.log_likelihood(model, guide, torch.zeros(2, 64), num_particles=0)
    with pytest.raises(
        ValueError, match="num_particles must be at least 2 for errors=True, got 1"
    ):
        evaluate.log_likelihood(model, guide, torch.zeros(2, 64), num_particles=1, errors=True)
    with pytest.raises(ValueError, match="num_particles"):
        evaluate.elbo(model, guide, torch.zeros(2, 64), num_particles=0)

    class Bare(nn.Module):
        def forward(self, x):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))

    with pytest.raises(PairError, match="observes nothing"):
        evaluate.log_likelihood(Bare(), Bare(), torch.zeros(2, 64))


def _subsampling(subsample_size, full_size=None):
    """A pair with a plate of the rows of x, or a larger one, and some of its rows."""

    def rows(x):
        return pyro.plate("data", full_size or len(x), subsample_size=subsample_size(x))

    def model(x):
        with rows(x) as chosen:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x if full_size else x[chosen])

    def guide(x):
        with rows(x) as chosen:
            pyro.sample("z", dist.Normal((x if full_size else x[chosen]) / 2, 0.5**0.5))

    return model, guide


def test_some_rows_in_the_place_of_all_are_refused():
    x = torch.linspace(-1, 1, 10)
    model, guide = _subsampling(lambda x: 4)
    for call in (
        lambda: evaluate.log_likelihood(model, guide, x),
        lambda: evaluate.elbo(model, guide, x),
        lambda: evaluate.embed(guide, x),
        lambda: evaluate.embed(guide, x, num_samples=3),
    ):
        with pytest.raises(PairError, match="draws 4 of 10 rows in the plate 'data'"):
            call()
    # A batch as the subsample of a larger plate has all its rows.
    model, guide = _subsampling(len, full_size=1000)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    assert torch.allclose(evaluate.log_likelihood(model, guide, x), exact, atol=1e-5)
    assert torch.allclose(evaluate.embed(guide, x), x / 2)


@pytest.mark.parametrize("num", [3, 100, 203])
def test_rows_come_first_in_nested_plates(num):
    """Results of batches were joined along the plate on the left, whatever plate it is."""
    x = torch.randn(num, 4, generator=torch.Generator().manual_seed(0))

    def half(rows_dim, observed):
        def run(x):
            cols = pyro.plate("cols", 4, dim=-3 - rows_dim)
            values = x if rows_dim == -2 else x.T
            with cols, pyro.plate("rows", len(x), dim=rows_dim):
                z = pyro.sample("z", dist.Normal(0.0 if observed else values / 2, 1.0))
                if observed:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=values)

        return run

    pair = half(-2, True), half(-2, False)
    assert evaluate.elbo(*pair, x).elbo.shape == (num, 4)
    assert torch.equal(evaluate.embed(pair[1], x), x / 2)
    pair = half(-1, True), half(-1, False)
    for call in (
        lambda: evaluate.log_likelihood(*pair, x, num_particles=2),
        lambda: evaluate.elbo(*pair, x),
        lambda: evaluate.embed(pair[1], x),
    ):
        with pytest.raises(PairError, match="put the plate of the rows left of the others"):
            call()


def test_the_old_name_of_a_bounds_estimate_warns():
    with pytest.warns(DeprecationWarning, match="evaluate.BoundEstimate"):
        assert evaluate.Bound is evaluate.BoundEstimate
    with pytest.raises(AttributeError, match="has no attribute 'Bond'"):
        evaluate.Bond  # noqa: B018


# --- guides with parameters of single rows
# ------------------------------------------------------------------------------


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def test_the_width_of_a_layer_makes_no_larger_batches():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 260)  # twice the rows below
            self.batches = []

        def forward(self, x):
            self.batches.append(len(x))
            shift = self.layer(x).mean(-1)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    model = Model()
    evaluate.log_likelihood(model, guide, torch.zeros(130, 3), num_particles=2, seed=0)
    assert set(model.batches) <= {100, 30}


def test_a_guide_with_parameters_of_each_row_gets_all_rows_at_once():
    """Pyro's automatic guides have them; batches of 100 rows were refused."""
    x = torch.linspace(-2.0, 2.0, 130)
    guide = AutoNormal(local)
    guide(x)
    with torch.no_grad():  # the exact posterior
        guide.locs.z.copy_(0.8 * x)
        guide.scales.z = torch.full_like(x, 0.2**0.5)
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(x)
    found = evaluate.log_likelihood(local, guide, x, num_particles=3, seed=0)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)

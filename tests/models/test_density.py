"""Densities without latent variables: exact log-likelihoods, samples, completions, scores."""

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from scipy import stats
from sklearn.mixture import GaussianMixture
from torch import nn

from tarspyro import (
    Autoregressive,
    Conditional,
    Transformed,
    data,
    evaluate,
    fit,
    guides,
    models,
)
from tarspyro.data import Sequences
from tarspyro.distributions import Prior, default_prior
from tarspyro.infer import PairError
from tarspyro.inputs import InputError
from tarspyro.nn import MADE, MLP, CausalRNN, PixelCNN
from tarspyro.runs import load_run


class Mixture(nn.Module):
    """A mixture of Normal distributions in the plane."""

    def __init__(self, count=3):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(count))
        self.loc = nn.Parameter(torch.randn(count, 2))
        self.log_scale = nn.Parameter(torch.zeros(count, 2))

    def forward(self):
        parts = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)


def flow():
    coupling = [transforms.affine_coupling(2, [16]), transforms.permute(2)]
    return Transformed(default_prior(dist.Normal, 2), coupling * 2)


def plane(count=300):
    rng = np.random.default_rng(0)
    means = np.array([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    x = means[rng.integers(3, size=count)] + 0.5 * rng.standard_normal((count, 2))
    return torch.tensor(x, dtype=torch.float32)


LIKELIHOODS = {
    "autoregressive": lambda: Autoregressive(dist.Normal, MADE(2, [16]), 2),
    "flow": flow,
    "mixture": Mixture,
    "learned prior": lambda: Prior(dist.Normal, 2),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_likelihood_is_exact(name):
    """It integrates to one, equals the distribution's own density, and does not need draws."""
    torch.manual_seed(0)
    p = models.Density(LIKELIHOODS[name]())
    x = plane(10)
    found = evaluate.log_likelihood(p, None, x, errors=True)
    with torch.no_grad():
        torch.testing.assert_close(found.log_likelihood, p.likelihood().log_prob(x))
    assert (found.standard_error == 0).all()
    torch.testing.assert_close(evaluate.elbo(p, None, x).elbo, found.log_likelihood)
    scores = evaluate.anomaly_score(p, None, x, score="log_likelihood")
    assert scores.equal(-found.log_likelihood)

    grid = torch.linspace(-20, 20, 161)
    whole = evaluate.log_likelihood(p, None, torch.cartesian_prod(grid, grid))
    assert (whole.logsumexp(0) + 2 * math.log(40 / 160)).abs() < 1e-2


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_fit_maximizes_the_likelihood(name):
    torch.manual_seed(0)
    p = models.Density(LIKELIHOODS[name]())
    x = plane()
    before = evaluate.log_likelihood(p, None, x).mean()
    history = fit(p, data=x, epochs=30, lr=1e-2, seed=0, progress=False)
    after = evaluate.log_likelihood(p, None, x).mean()
    assert after > before + 0.3
    assert history["elbo"][-1] == pytest.approx(after.item(), abs=0.2)
    assert "kl" not in history.rows[-1] or history["kl"][-1] == 0
    assert evaluate.sample(p, 5, seed=0).shape == (5, 2)


def test_a_mixture_reaches_the_maximum_of_em():
    torch.manual_seed(0)
    p = models.Density(Mixture())
    with torch.no_grad():
        p.likelihood.loc.copy_(torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    x = plane()
    fit(p, data=x, epochs=60, lr=3e-2, batch_size=300, seed=0, progress=False)
    fit(p, data=x, epochs=150, lr=1e-2, batch_size=300, seed=0, progress=False)
    best = GaussianMixture(3, covariance_type="diag", random_state=0, tol=1e-9, max_iter=1000)
    best.fit(x.numpy())
    found = evaluate.log_likelihood(p, None, x).mean().item()
    assert found == pytest.approx(best.score(x.numpy()), abs=5e-3)


def test_guide_none_is_for_models_without_latent_variables():
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, [4]), 2))
    with pytest.raises(PairError, match="z"):
        evaluate.log_likelihood(p, None, plane(5))


def digits():
    x = data.digits().train.x.round()
    return x.reshape(-1, 1, 8, 8)


@pytest.mark.parametrize(
    "trunk",
    [
        lambda: MADE((1, 8, 8), [100]),
        lambda: MADE((1, 8, 8), [100], order="random", num_masks=2),
        lambda: PixelCNN((1, 8, 8), 8, 3),
    ],
    ids=["MADE", "MADE with masks", "PixelCNN"],
)
def test_digits_are_better_than_independent_pixels(trunk):
    """The best independent pixels, with their own share of black, after seconds of training."""
    torch.manual_seed(0)
    p = models.Density(Autoregressive(dist.Bernoulli, trunk(), (1, 8, 8)))
    x = digits()
    fit(p, data=x[:1300], epochs=8, lr=1e-2, batch_size=50, seed=0, progress=False)
    share = ((x[:1300].sum(0) + 1) / 1302).clamp(1e-3, 1 - 1e-3)
    alone = dist.Bernoulli(share).to_event(3).log_prob(x[1300:]).mean()
    assert evaluate.log_likelihood(p, None, x[1300:]).mean() > alone + 2


def test_completions_are_exact():
    """The lower rows given the upper ones: the frequencies of the last pixel are those of the
    ratio of two densities.
    """
    torch.manual_seed(0)
    p = models.Density(Autoregressive(dist.Bernoulli, PixelCNN((1, 2, 3), 8, 3), (1, 2, 3)))
    for weight in p.parameters():
        nn.init.normal_(weight, 0.0, 0.6)
    x = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, torch.nan]]).reshape(1, 1, 2, 3)
    mask = torch.tensor([[True, True, True], [True, True, False]]).reshape(1, 1, 2, 3)
    both = torch.cat([x.nan_to_num(0.0), x.nan_to_num(1.0)])
    log_p = evaluate.log_likelihood(p, None, both)
    share = log_p.softmax(0)[1].item()
    drawn = evaluate.impute(p, None, x, mask, num_samples=4000, seed=0)
    assert drawn.shape == (4000, 1, 1, 2, 3)
    assert (drawn[..., mask[0]] == x[mask]).all()
    count = int(drawn[..., -1, -1].sum())
    assert stats.binomtest(count, 4000, share).pvalue > 1e-4
    mean = evaluate.impute(p, None, x, mask, num_samples=4000, mean=True, seed=0)
    assert mean[0, 0, 1, 2].item() == pytest.approx(count / 4000)
    assert evaluate.impute(p, None, x, mask, seed=0).shape == (1, 1, 2, 3)


def test_completions_that_the_order_does_not_allow():
    p = models.Density(Autoregressive(dist.Bernoulli, MADE(4, [8]), 4))
    x = torch.ones(3, 4)
    with pytest.raises(PairError, match="observed ones come after missing ones"):
        evaluate.impute(p, None, x, torch.tensor([False, True, True, True]))
    order = torch.tensor([3, 0, 1, 2])
    p = models.Density(Autoregressive(dist.Bernoulli, MADE(4, [8], order=order), 4))
    assert evaluate.impute(p, None, x, torch.tensor([False, True, True, True])).shape == (3, 4)
    with pytest.raises(PairError, match="does not factorize"):
        evaluate.impute(models.Density(flow()), None, plane(3), torch.tensor([True, False]))
    with pytest.raises(InputError, match="outside the support"):
        evaluate.impute(p, None, 2 * x, torch.tensor([False, True, True, True]))


def test_completions_of_independent_elements():
    p = models.Density(dist.Normal(torch.tensor([0.0, 5.0]), 1.0).to_event(1))
    x = torch.zeros(1, 2)
    drawn = evaluate.impute(p, None, x, torch.tensor([True, False]), num_samples=4000, seed=0)
    assert (drawn[..., 0] == 0).all()
    assert (drawn[..., 1].mean() - 5).abs() < 4 / 4000**0.5


def test_means_of_autoregressive_likelihoods_are_draws():
    trunk = MADE(4, [8], context=2)
    p = models.VAE(default_prior(dist.Normal, 2), Autoregressive(dist.Bernoulli, trunk, 4))
    q = guides.VAE(Conditional(dist.Normal, MLP(4, [8]), 2))
    for shown in (
        evaluate.reconstruct(p, q, torch.ones(3, 4)),
        evaluate.decode(p, torch.zeros(3, 2)),
        evaluate.sample(p, 3, mean=True),
    ):
        assert shown.shape == (3, 4)
        assert ((shown == 0) | (shown == 1)).all()


def test_grey_values_are_refused_with_the_remedies_of_pixels():
    p = models.Density(Autoregressive(dist.Bernoulli, MADE(4, [8]), 4))
    with pytest.raises(InputError, match="binarize=True"):
        fit(p, data=torch.full((5, 4), 0.5), progress=False)
    grey = Autoregressive(dist.Bernoulli, MADE(4, [8]), 4, validate_args=False)
    fit(models.Density(grey), data=torch.full((5, 4), 0.5), epochs=1, progress=False)


def test_runs_are_loaded(tmp_path):
    p = models.Density(Autoregressive(dist.Normal, MADE(2, [8]), 2))
    fit(p, data=plane(20), epochs=1, folder=tmp_path / "run", progress=False)
    run = load_run(tmp_path / "run")
    one, other = (evaluate.log_likelihood(m, None, plane(5)) for m in (p, run.model))
    assert one.equal(other)
    assert run.guide is None


def test_errors():
    with pytest.raises(TypeError, match="likelihood must be a distribution or a module"):
        models.Density(dist.Normal)
    with pytest.raises(TypeError, match="likelihood must be a distribution or a module"):
        models.Density(3)


class TestSequences:
    SHAPE = (3, 2)

    def density(self):
        torch.manual_seed(0)
        trunk = CausalRNN(self.SHAPE, 5)
        p = models.Density(Autoregressive(dist.Bernoulli, trunk, self.SHAPE)).double()
        with torch.no_grad():
            for parameter in p.parameters():
                parameter.normal_()
        return p

    def test_the_steps_beyond_the_lengths_are_summed_out(self):
        p = self.density()
        every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.double)
        log_p = p.likelihood().log_prob(every.reshape(-1, *self.SHAPE))
        x = every[40:45].reshape(-1, *self.SHAPE)
        for steps in (1, 2, 3):
            alike = (every[:, None, : 2 * steps] == every[None, 40:45, : 2 * steps]).all(-1)
            marginal = torch.where(alike, log_p[:, None], -math.inf).logsumexp(0)
            for width in range(steps, 4):  # however far they are padded
                padded = Sequences(x[:, :width], torch.full((5,), steps))
                found = evaluate.log_likelihood(p, None, padded)
                torch.testing.assert_close(found, marginal)

    def test_sequences_of_several_lengths_are_fitted(self):
        lengths = torch.tensor([1, 2, 3] * 20)
        steps = torch.arange(3) % 2 * 1.0
        x = Sequences(steps[:, None].expand(60, 3, 2) * (torch.arange(3) < lengths[:, None])[..., None], lengths)  # fmt: skip
        p = self.density().float()
        fit(p, None, x, epochs=60, batch_size=10, lr=0.05, seed=0, progress=False)
        log_p = evaluate.log_likelihood(p, None, x)
        assert log_p.mean() > -0.2  # what each step is, is known
        assert evaluate.sample(p, 20, seed=0).mean(0)[:, 0].round().tolist() == [0, 1, 0]

    def test_what_has_no_lengths(self):
        lengths = torch.tensor([2, 3])
        made = models.Density(Autoregressive(dist.Bernoulli, MADE((3, 2), [9], order="random"), (3, 2)))  # fmt: skip
        with pytest.raises(ValueError, match="one step after another along the first"):
            made(torch.zeros(2, 3, 2), lengths)
        with pytest.raises(
            ValueError, match="lengths need a likelihood over steps, got Indep"
        ):
            models.Density(default_prior(dist.Normal, (3, 2)))(torch.zeros(2, 3, 2), lengths)
        with pytest.raises(ValueError, match="x must have at most 3 steps"):
            self.density()(torch.zeros(2, 4, 2), lengths)
        with pytest.raises(ValueError, match="lengths must be integers of shape"):
            self.density()(torch.zeros(2, 3, 2), lengths[:1])

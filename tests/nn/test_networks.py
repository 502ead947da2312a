"""Networks as users write them: they train with particles, are evaluated and embed."""

import contextlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import (
    Conditional,
    FromNetwork,
    IncompleteLikelihood,
    evaluate,
    fit,
    guides,
    models,
)
from tarspyro.conditional import Blocks
from tarspyro.data import digits, read_table
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE, check_pair
from tarspyro.nn import MLP, Log1p, Standardize, WithGaps
from tarspyro.training.checks import NonFiniteError

from ..networks import DECODERS, ENCODERS, LATENT, SHAPE

OPTIONS = {"epochs": 1, "batch_size": 20, "seed": 0, "progress": False}
# Every network once on each side, and some pairs in which neither is a simple one.
PAIRS = [
    *((encoder, "MLP") for encoder in ENCODERS),
    *(("MLP", decoder) for decoder in DECODERS),
    ("view", "Unflatten"),
    ("Linear before GRU", "GRU over a repeated code"),
    ("Embedding", "theta @ beta"),
    ("convolution after its fc", "LayerNorm"),
]


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_a_pair_of_any_networks(encoder, decoder):
    x = digits(flatten=False).train.x[:40]
    likelihood = Conditional(dist.Bernoulli, DECODERS[decoder](), SHAPE)
    p = models.VAE(default_prior(dist.Normal, LATENT), likelihood)
    q = guides.VAE(Conditional(dist.Normal, ENCODERS[encoder](), LATENT))
    history = fit(p, q, x, loss=IWAE(num_particles=3), binarize=True, **OPTIONS)
    assert torch.tensor(history["loss"]).isfinite().all()
    found = evaluate.log_likelihood(p, q, x[:20], num_particles=4, binarize=True, seed=0)
    assert found.isfinite().all() and found.shape == (20,)
    codes = evaluate.embed(q, x[:20])
    assert codes.shape == (20, LATENT)
    # particles before the batch give the numbers of a loop over them
    z = torch.randn(5, 20, LATENT)
    p.eval()
    together = p.likelihood(z).log_prob(x[:20].round())
    alone = torch.stack([p.likelihood(one).log_prob(x[:20].round()) for one in z])
    assert torch.allclose(together, alone, atol=1e-4)


def test_the_plates_of_a_run_tell_the_rank_of_an_event():
    """Before a run the first layer is believed; a run knows better, and is remembered."""
    encoder = ENCODERS["view"]()
    q = guides.VAE(Conditional(dist.Normal, encoder, LATENT))
    x = torch.rand(6, *SHAPE)
    q(x)
    assert q.posterior(x).batch_shape == (6,)
    assert q.posterior(x.expand(4, 6, *SHAPE)).batch_shape == (4, 6)
    with pytest.raises(ValueError, match="last 3 dimensions are a data point's.*in_shapes"):
        q.posterior(torch.rand(64))


class Weighted(nn.Module):
    """A network of a code and of weights that all data points share."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2 + 4, 8)

    def forward(self, z, w):
        return self.layer(torch.cat([z, w], 1))


@pytest.mark.parametrize("rows", [7, 4])  # four: as many as there are weights
def test_an_input_that_no_plate_holds_is_a_vector(rows):
    likelihood = Conditional(dist.Normal, Weighted(), 3)
    w = torch.randn(4)
    with pyro.plate("data", rows):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        found = likelihood(z, w)
    assert torch.equal(found.mean, likelihood(z, w.expand(rows, 4)).mean)


class Labelled(nn.Module):
    """A network of a vector and a label, a whole number of each data point."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.network = MLP([2, 3], [8])

    def forward(self, x, y):
        return self.network(x, self.embedding(y))


class Timed(nn.Module):
    """A network of a vector and a real number of each data point."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, x, t):
        return self.layer(torch.cat([x, t.unsqueeze(-1)], -1))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("network", [Labelled, Timed])
def test_a_further_input_may_be_a_number_of_each_data_point(network, inside):
    """Each row depends on its own number alone, with particles too."""
    torch.manual_seed(0)
    trunk = network()
    conditional = Conditional(dist.Normal, trunk, 4)
    x = torch.randn(5, 2)
    y = torch.arange(5) if network is Labelled else torch.linspace(0, 1, 5)
    with pyro.plate("data", 5) if inside else contextlib.nullcontext():
        found = conditional(x, y).mean
    expected = conditional.heads["loc"](trunk(x, y))
    torch.testing.assert_close(found, expected)
    if inside:  # the run has shown what a data point is
        particles = conditional(x.expand(3, 5, 2), y).mean
        torch.testing.assert_close(particles, expected.expand(3, 5, 4))
    torch.testing.assert_close(conditional(x[:2], y[:2]).mean, expected[:2])


def test_labels_go_through_an_embedding_of_ones_own():
    """The likelihood of a row does not depend on the labels of others."""
    labels = torch.arange(40) % 5
    x = torch.randn(40, 2)
    torch.manual_seed(0)
    likelihood = Conditional(dist.Normal, Labelled(), 2, scale=0.5)
    p = models.ConditionalVAE(default_prior(dist.Normal, 2), likelihood)
    q = guides.ConditionalVAE(Conditional(dist.Normal, Labelled(), 2))
    history = fit(p, q, (x, labels), epochs=3, batch_size=16, seed=0, progress=False)
    assert math.isfinite(history["loss"][-1])
    options = {"num_particles": 2000, "errors": True, "seed": 0}
    together = evaluate.log_likelihood(p, q, (x, labels), **options)
    alone = evaluate.log_likelihood(p, q, (x[:3], labels[:3]), **options)
    off = together.log_likelihood[:3] - alone.log_likelihood
    assert (off.abs() < 4 * together.standard_error[:3].hypot(alone.standard_error)).all()


@pytest.mark.parametrize("num_particles", [1, 2])
def test_labels_that_the_guide_enumerates_go_through_networks_of_ones_own(num_particles):
    """The sum over labels is the mean over their draws."""
    torch.manual_seed(0)
    x = torch.randn(12, 2)
    likelihood = Conditional(dist.Normal, Labelled(), 2, scale=1.0)
    posterior = Conditional(dist.Normal, Labelled(), 2)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(5)))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", likelihood(z, y), obs=x)

    def guide(infer):
        def run(x):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.arange(1.0, 6.0)), infer=infer)
                pyro.sample("z", posterior(x, y))

        return run

    bounds = []
    for infer in ({}, {"enumerate": "parallel"}):
        check_pair(model, guide(infer), x)  # a run without enumeration
        losses = [ELBO(num_particles).loss(model, guide(infer), x) for _ in range(80)]
        bounds.append(torch.tensor(losses))
    error = sum(values.var() / 80 for values in bounds) ** 0.5
    assert (bounds[0].mean() - bounds[1].mean()).abs() < 4 * error
    assert bounds[1].std() < bounds[0].std()


class Halves(nn.Module):
    """Returns a mean and the logarithm of a variance, as many encoders do."""

    def __init__(self, returned="pair"):
        super().__init__()
        self.hidden = nn.Linear(64, 16)
        self.out = nn.Linear(16, 2 * LATENT)
        self.returned = returned

    def forward(self, x):
        h = torch.relu(self.hidden(x.view(x.size(0), -1)))
        loc, log_variance = self.out(h).chunk(2, -1)
        if self.returned == "distribution":
            return dist.Normal(loc, (log_variance / 2).exp()).to_event(1)
        return loc, log_variance


def normal(loc, log_variance):
    return dist.Normal(loc, (log_variance / 2).exp()).to_event(1)


@pytest.mark.parametrize("returned", ["pair", "distribution"])
def test_networks_with_heads_of_their_own(returned):
    torch.manual_seed(0)
    x = digits(flatten=False).train.x[:40]
    network = Halves(returned)
    posterior = FromNetwork(network, normal if returned == "pair" else None)
    p = models.VAE(
        default_prior(dist.Normal, LATENT),
        Conditional(dist.Bernoulli, MLP(LATENT, [16]), SHAPE),
    )
    q = guides.VAE(posterior)
    fit(p, q, x, loss=IWAE(num_particles=3), binarize=True, **OPTIONS)
    assert evaluate.embed(q, x).shape == (40, LATENT)
    loc, log_variance = (
        Halves.forward(network.eval(), x) if returned == "pair" else (None, None)
    )
    if loc is not None:
        assert torch.allclose(posterior(x).mean, loc)
        assert torch.allclose(posterior(x).variance, log_variance.exp())
    many = posterior(x.expand(2, *x.shape))
    assert many.batch_shape == (2, 40) and torch.allclose(many.mean[1], posterior(x).mean)


def test_what_is_no_distribution_is_said_with_the_way_out():
    x = torch.rand(5, 64)
    with pytest.raises(TypeError, match="Halves returns.*FromNetwork"):
        Conditional(dist.Normal, Halves(), LATENT)(x)
    with pytest.raises(TypeError, match="Halves returns.*no distribution.*lambda loc"):
        FromNetwork(Halves())(x)
    with pytest.raises(TypeError, match="distribution must be a function"):
        FromNetwork(Halves(), 3)


def test_first_layers():
    torch.manual_seed(0)
    x = 500 + 100 * torch.randn(1000, 3)
    x[:, 1] = 7.0
    layer = Standardize.of(torch.cat([x, torch.full((5, 3), float("nan"))]))
    y = layer(x)
    assert torch.allclose(y.mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(y.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]), atol=1e-4)
    assert torch.allclose(layer.inverse(y), x, atol=1e-2)
    with pytest.raises(ValueError, match="scale must be positive"):
        Standardize(0.0, 0.0)
    assert torch.equal(Log1p()(torch.tensor([0.0])), torch.zeros(1))
    encoder = WithGaps(MLP([3, 3], [8]), 3)
    gappy = torch.tensor([[1.0, float("nan"), 2.0]])
    assert torch.equal(
        encoder(gappy),
        encoder.network(torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1.0, 0, 1]])),
    )
    image = WithGaps(nn.Conv2d(2, 4, 3), (1, 8, 8), dim=0)
    assert image(torch.rand(5, 1, 8, 8)).shape == (5, 4, 6, 6)


def table():
    """A table of three kinds, with a hidden number behind its columns and 40 % of gaps."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, generator=generator)
    real = z + 0.3 * torch.randn(400, generator=generator)
    yes = (z + 0.5 * torch.randn(400, generator=generator)) > 0
    lines = ["height,smokes,city"]
    for a, b, c in zip(real.tolist(), yes.tolist(), (z > 0.5).tolist(), strict=True):
        cells = [f"{a:.3f}", "yes" if b else "no", "Rome" if c else "Oslo"]
        keep = torch.rand(3, generator=generator) > 0.4
        lines.append(",".join(cell if k else "" for cell, k in zip(cells, keep, strict=True)))
    return read_table("\n".join(lines)).by_kind()


def test_a_table_with_gaps_trains_and_is_evaluated():
    torch.manual_seed(0)
    x = table().x
    assert x.isnan().float().mean() > 0.3
    blocks = [
        Conditional(dist.Normal, MLP(2, [16]), 1),
        Conditional(dist.Bernoulli, MLP(2, [16]), 1),
        Conditional(dist.OneHotCategorical, MLP(2, [16]), 2),
    ]
    p = models.VAE(default_prior(dist.Normal, 2), IncompleteLikelihood(Blocks(*blocks)))
    q = guides.VAE(Conditional(dist.Normal, WithGaps(MLP([4, 4], [16]), 4), 2))
    history = fit(p, q, x, epochs=20, batch_size=50, lr=0.01, seed=0, progress=False)
    assert history["elbo"][-1] > history["elbo"][0] + 0.2
    found = evaluate.log_likelihood(p, q, x, num_particles=50, seed=0)
    assert found.isfinite().all()
    empty = torch.full((1, 4), float("nan"))
    assert torch.allclose(
        evaluate.log_likelihood(p, q, empty, num_particles=20_000, seed=0),
        torch.zeros(1),
        atol=0.05,
    )


def test_a_loss_that_is_not_finite_is_not_blamed_on_gaps():
    torch.manual_seed(0)
    x = table().x[:, :1]
    p = models.VAE(
        default_prior(dist.Normal, 2),
        IncompleteLikelihood(Conditional(dist.Normal, MLP(2, [16]), 1)),
    )
    q = guides.VAE(Conditional(dist.Normal, WithGaps(MLP([1, 1], [16]), 1), 2))
    with pytest.raises(NonFiniteError) as error:
        fit(p, q, x, epochs=5, lr=1e30, progress=False)
    assert "data[0] is not finite" not in str(error.value)


def test_gaps_without_such_a_likelihood_are_refused():
    x = table().x[:, :1]
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, [16]), 1))
    q = guides.VAE(Conditional(dist.Normal, MLP(1, [16]), 2))
    with pytest.raises(ValueError, match="NaN"):
        fit(p, q, x, epochs=1, progress=False)

"""Games and losses of codes: discriminators of any trunk, checks before the first step, and
rows that are masked.
"""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from tarspyro import Conditional, Deterministic, Run, fit, guides, models
from tarspyro.distributions import Gamma, default_prior
from tarspyro.infer import (
    ELBO,
    IWAE,
    VAEGAN,
    WAE,
    Adversarial,
    AdversarialAutoencoder,
    Game,
    GaussianKernel,
    ModalityKL,
    PairError,
    Wasserstein,
)
from tarspyro.infer.games.mmd import mmd
from tarspyro.nn import MLP, Discriminator

from ..programs import assert_within

# Discriminators whose trunk does not tell its output size, from images of 8 x 8.
TRUNKS = {
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten()
    ),
    "batch normalization last": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16)
    ),
    "layer normalization last": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16)
    ),
    "lazy": lambda: nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(8)
    ),
    "pooled": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
}
OF_CODES = {
    "batch normalization last": lambda: nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16)),
    "layer normalization last": lambda: nn.Sequential(nn.Linear(2, 16), nn.LayerNorm(16)),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(8)),
}
IMAGES = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def decoder():
    return MLP(2, [8])


def gan(trunk, divergence=None):
    p = models.GAN(default_prior(dist.Normal, 2), Deterministic(decoder(), (1, 8, 8)))
    return p, None, Adversarial(Discriminator(trunk), divergence)


def vae():
    p = models.VAE(
        default_prior(dist.Normal, 2),
        Conditional(dist.Normal, decoder(), (1, 8, 8), scale=0.5),
    )
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    return p, guides.VAE(Conditional(dist.Normal, encoder, 2))


def vaegan(trunk):
    return *vae(), VAEGAN(Discriminator(trunk))


def autoencoder(trunk):
    return *vae(), AdversarialAutoencoder(Discriminator(trunk))


GAMES = {
    f"{make.__name__}, {name}": (make, trunk)
    for make in (gan, vaegan)
    for name, trunk in TRUNKS.items()
}
GAMES |= {f"autoencoder, {name}": (autoencoder, trunk) for name, trunk in OF_CODES.items()}
GAMES["Wasserstein with a penalty"] = (
    lambda trunk: gan(trunk, Wasserstein()),
    TRUNKS["layer normalization last"],
)


def train(p, q, loss, x=IMAGES, **options):
    return fit(
        p,
        q,
        x,
        loss=loss,
        **{"epochs": 2, "batch_size": 8, "seed": 0, "progress": False} | options,
    )


@pytest.mark.parametrize("make, trunk", GAMES.values(), ids=GAMES)
def test_a_discriminator_of_any_trunk_plays(make, trunk):
    p, q, game = make(trunk())
    train(p, q, game, epochs=1)
    before = {
        name: value.detach().clone()
        for name, value in game.discriminator.named_parameters()
        if value.dim() > 1
    }
    history = train(p, q, game)
    assert all(value == value for row in history.rows for value in row.values())
    assert not any(
        torch.equal(before[name], game.discriminator.get_parameter(name)) for name in before
    )


@pytest.mark.parametrize("name", ["convolution", "lazy"])
def test_a_resumed_game_with_a_lazy_head_is_the_uninterrupted_one(tmp_path, name):
    def make():
        torch.manual_seed(0)
        return gan(TRUNKS[name]())

    whole = train(*make(), epochs=3)
    train(*make(), folder=tmp_path / "run", epochs=1)
    resumed = train(*make(), folder=Run(tmp_path / "run", resume=True), epochs=3)
    assert [row["generator_loss"] for row in resumed.rows] == [
        row["generator_loss"] for row in whole.rows
    ]


def test_the_check_changes_nothing_but_lazy_layers():
    for make in (gan, vaegan):
        p, q, game = make(TRUNKS["batch normalization last"]())
        halves = [half for half in (p, q, game) if half is not None]
        game.check(p, q or (lambda x: None), IMAGES)  # the head has a size from now on
        before = copy.deepcopy([half.state_dict() for half in halves])
        state = torch.get_rng_state()
        game.check(p, q or (lambda x: None), IMAGES)
        assert torch.equal(state, torch.get_rng_state())
        for half, old in zip(halves, before, strict=True):
            assert all(
                torch.equal(value, old[name]) for name, value in half.state_dict().items()
            )
            assert all(parameter.grad is None for parameter in half.parameters())
            assert half.training


@pytest.mark.parametrize(
    "make, trunk",
    [(gan, lambda: MLP(3, [4])), (vaegan, lambda: nn.Sequential(nn.Linear(3, 4)))],
)
def test_a_discriminator_that_does_not_fit_is_found_before_the_first_step(
    tmp_path, make, trunk
):
    p, q, game = make(nn.Sequential(nn.Flatten(), *trunk()) if make is vaegan else trunk())
    before = [parameter.detach().clone() for parameter in p.parameters()]
    with pytest.raises((PairError, ValueError), match="discriminator|does not run|takes"):
        train(p, q, game, folder=tmp_path / "run")
    assert all(map(torch.equal, before, p.parameters()))
    assert not (tmp_path / "run").exists()


def test_a_game_of_ones_own_is_played_once_before_the_first_step():
    class Broken(Game):
        def players(self, model, guide):
            return [self.player("fitter", self.loss, model)]

        def loss(self, model, guide, x):
            return (model.likelihood.trunk(x) @ x).sum(), {}

    p, _, _ = gan(TRUNKS["convolution"]())
    p.likelihood.trunk = nn.Linear(5, 3)
    with pytest.raises(
        PairError, match=r"The loss of the fitter does not run on data of shape \(4, 5\)"
    ):
        Broken().rehearse(p, lambda x: None, torch.zeros(4, 5))


# Scales of lazy heads.


@pytest.mark.parametrize(
    "trunk",
    [nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)), nn.Sequential(nn.Conv1d(1, 2, 2))],
)
def test_a_scale_is_first_one_whatever_the_trunk(trunk):
    context = torch.randn(20, 3) if isinstance(trunk[0], nn.Linear) else torch.randn(20, 1, 3)
    q = Conditional(dist.Normal, trunk, 2)(context)
    torch.testing.assert_close(q.base_dist.scale, torch.ones(20, 2))
    assert q.base_dist.loc.std() > 0.1


def test_a_lazy_head_starts_as_the_others_do():
    """Uniform weights of variance 2 / (n_in + n_out), and no bias."""
    torch.manual_seed(0)
    q = Conditional(dist.Normal, nn.Sequential(nn.Linear(3, 100), nn.LayerNorm(100)), 300)
    q(torch.randn(4, 3))
    layer = q.heads["loc"][1]
    assert type(layer) is nn.Linear
    assert layer.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert (layer.bias == 0).all()


# Rows that are masked.

KEPT = torch.arange(100) < 50
LINEAR = dist.Normal(torch.zeros(2), 1.0).to_event(1)


def around(model_too=True):
    """The whole of both halves inside ``poutine.mask``, or the guide's alone."""

    def model(x):
        with (
            pyro.plate("data", len(x)),
            poutine.mask(mask=KEPT if model_too else torch.tensor(True)),
        ):
            z = pyro.sample("z", LINEAR)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=KEPT):
            pyro.sample("z", dist.Delta(x, event_dim=1))

    return model, guide


def of_distributions(to_event):
    def masked(family, *parameters):
        if to_event:
            return family(*parameters).mask(KEPT.unsqueeze(-1)).to_event(1)
        return family(*parameters).to_event(1).mask(KEPT)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", masked(dist.Normal, torch.zeros(100, 2), 1.0))
            pyro.sample("x", masked(dist.Normal, z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", masked(dist.Delta, x))

    return model, guide


def of_the_observation(elements):
    """The latent variable is there, and nothing of the row is observed."""
    mask = KEPT.unsqueeze(-1).expand(100, 2) if elements else KEPT

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", LINEAR)
            if elements:
                pyro.sample("x", dist.Normal(z, 1.0).mask(mask).to_event(1), obs=x)
            else:
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x, obs_mask=mask)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Delta(x, event_dim=1))
            if not elements:
                with poutine.mask(mask=~mask):
                    pyro.sample("x_unobserved", dist.Normal(z, 1.0).to_event(1))

    return model, guide


MASKED = {
    "poutine.mask": around(),
    "poutine.mask of the guide": around(model_too=False),
    ".mask()": of_distributions(to_event=False),
    ".mask().to_event()": of_distributions(to_event=True),
    "obs_mask": of_the_observation(elements=False),
    "all elements": of_the_observation(elements=True),
}


def rows():
    return torch.randn(100, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pair", MASKED.values(), ids=MASKED)
def test_the_discrepancy_does_not_see_masked_rows(pair):
    x, found = rows(), []
    for filled in (0.0, 10.0, torch.nan):
        y = torch.where(KEPT.unsqueeze(-1), x, x + filled)
        torch.manual_seed(7)
        with pyro.validation_enabled(False):
            found.append(WAE().loss_and_terms(*pair, y)[1]["mmd"])
    assert found[0] == found[1] == found[2]
    # As many rows and draws of the prior as count, whatever else the halves drew.
    torch.manual_seed(0)
    repeated = [WAE().loss_and_terms(*pair, x)[1]["mmd"] for _ in range(200)]
    halves = [mmd(x[:50], torch.randn(50, 2), WAE().kernel) for _ in range(200)]
    assert_within(torch.stack(repeated) / 50 - torch.stack(halves), 0.0)


@pytest.mark.parametrize("pair", MASKED.values(), ids=MASKED)
def test_a_discriminator_of_codes_does_not_see_masked_rows(pair):
    torch.manual_seed(0)
    game, x = AdversarialAutoencoder(Discriminator(MLP(2, [8]))), rows()
    found = []
    for shift in (0.0, 10.0):
        y = torch.where(KEPT.unsqueeze(-1), x, x + shift)
        torch.manual_seed(7)
        found.append(game.discriminator_loss(*pair, y)[0])
    assert found[0] == found[1]


def test_a_row_of_which_something_is_observed_counts():
    """One of two modalities is missing in half of the rows: all of them have codes."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", LINEAR)
            with poutine.mask(mask=KEPT):
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(y, event_dim=1))

    x = rows()
    torch.manual_seed(7)
    _, terms = WAE().loss_and_terms(model, guide, x, x)
    torch.manual_seed(7)
    torch.testing.assert_close(terms["mmd"], 100 * mmd(x, torch.randn(100, 2), WAE().kernel))


def test_gradients_do_not_come_from_masked_rows():
    codes = rows()
    codes[50:] = torch.nan
    codes.requires_grad_()
    (gradient,) = torch.autograd.grad(
        mmd(codes, rows() + 1, GaussianKernel(), counted=KEPT), codes
    )
    assert gradient[:50].isfinite().all() and gradient[:50].abs().min() > 0
    assert (gradient[50:] == 0).all()


def test_the_masked_discrepancy_has_the_expectation_of_the_whole_one():
    torch.manual_seed(0)
    kernel, found, some = GaussianKernel(), [], []
    for _ in range(400):
        x, y = torch.randn(20, 2) + 0.5, torch.randn(20, 2)
        found.append(mmd(x, y, kernel))
        some.append(mmd(x, y, kernel, counted=torch.rand(20) < 0.7))
    found, some = torch.stack(found), torch.stack(some)
    assert_within(some - found, 0.0)
    alone = mmd(x, y, kernel, counted=torch.arange(20) < 1)
    assert alone == 0
    with pytest.raises(ValueError, match="counted must have one entry"):
        mmd(x, y, kernel, counted=torch.ones(3, dtype=torch.bool))


def test_a_generators_masked_rows_do_not_count():
    """``.mask()`` in the likelihood is as ``poutine.mask`` around it."""

    def model(x, mask_inside):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", LINEAR)
            if mask_inside:
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1).mask(KEPT), obs=x)
            else:
                with poutine.mask(mask=KEPT):
                    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    game, found = Adversarial(Discriminator(MLP(2, [8]))), []
    for inside in (True, False):
        torch.manual_seed(7)
        found.append(
            game.discriminator_loss(lambda x, i=inside: model(x, i), lambda x: None, rows())[0]
        )
    torch.testing.assert_close(*found)


def test_a_view_of_the_data_is_no_condition():
    """A model that observes its data in one row each: the discriminator must not see it a
    second time.
    """

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(64), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(z, event_dim=1), obs=x.flatten(1))

    loss, _ = Adversarial(Discriminator(MLP(64, [8]))).discriminator_loss(
        model, lambda x: None, IMAGES
    )
    assert loss.isfinite()


def test_priors_of_other_families_are_weighed_too():
    """Draws with a score of their own, as those of a Gamma, keep their gradients."""

    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=KEPT):
            z = pyro.sample("z", Gamma(torch.ones(2), torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=KEPT):
            pyro.sample("z", dist.Delta(x.abs(), event_dim=1))

    _, terms = WAE().loss_and_terms(model, guide, rows())
    assert terms["mmd"].isfinite()


# Losses beside a bound.


class Modalities:
    """Guides of one and of two modalities, StudentT and Normal, between which there is no
    closed form.
    """

    @staticmethod
    def guide(first, second):
        rows = first if first is not None else second
        with pyro.plate("data", len(rows)):
            if first is None or second is None:
                return pyro.sample("z", dist.StudentT(3.0, rows, 1.0).to_event(1))
            return pyro.sample("z", dist.Normal((first + second) / 2, 0.5).to_event(1))

    @staticmethod
    def model(first, second):
        with pyro.plate("data", len(first)):
            z = pyro.sample("z", dist.StudentT(3.0, torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x_1", dist.Normal(z, 1.0).to_event(1), obs=first)
            pyro.sample("x_2", dist.Normal(z, 1.0).to_event(1), obs=second)


@pytest.mark.parametrize(
    "make, vectorized, times", [(ELBO, True, 40), (IWAE, True, 40), (ELBO, False, 12)]
)
def test_modality_kl_takes_as_many_draws_as_its_bound_has_particles(make, vectorized, times):
    """Its variance falls with their number, and it is run as the bound is."""
    x, spread = (rows()[:10], rows()[:10] + 0.3), []
    for particles in (1, 16):
        torch.manual_seed(0)
        loss = ModalityKL(make(particles, vectorize_particles=vectorized))
        values = [
            loss.loss_and_terms(Modalities.model, Modalities.guide, *x)[1]["modality_kl"]
            for _ in range(times)
        ]
        spread.append(torch.stack(values).var().log().item())
    # The logarithm of the ratio of two variances of n draws has a standard error of 2 / sqrt(n
    # - 1).
    assert spread[0] - spread[1] == pytest.approx(math.log(16), abs=4 * 2 / (times - 1) ** 0.5)
    assert spread[0] - spread[1] > 1


def test_what_is_computed_from_the_data_is_no_condition():
    """A model that observes its data scaled would show the data themselves to the
    discriminator.
    """

    class Scaled(models.GAN):
        def forward(self, x=None, *, batch_size=1):
            return super().forward(None if x is None else x / 2, batch_size=batch_size)

    p = Scaled(default_prior(dist.Normal, 2), Deterministic(MLP(2, [4]), 3))
    game = Adversarial(Discriminator(MLP(3, [4])))
    with pytest.raises(
        PairError, match="observes at 'x' what it computes from part 0 of the data"
    ):
        fit(p, None, torch.randn(10, 3), loss=game, epochs=1, progress=False)

"""Autoregressive distributions against the enumeration of all images."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

from tarspyro import Autoregressive, Conditional, data, evaluate, fit, guides, models
from tarspyro.distributions import DiscretizedLogisticMixture, Gamma, default_prior
from tarspyro.infer import ELBO, IWAE, Compiled
from tarspyro.nn import MADE, MLP, CausalConv1d, CausalRNN, ConvDecoder, PixelCNN
from tarspyro.runs import load_run

IMAGES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=12)))


class Shifted(nn.Module):
    """A causal network of one's own: a recurrent one over the rows of an image."""

    out_features = 8

    def __init__(self, shift=1):
        super().__init__()
        self.rnn = nn.GRU(1, 8, batch_first=True)
        self.shift = shift

    def forward(self, x):
        before = nn.functional.pad(x.flatten(1), (self.shift, 0))[:, : x[0].numel()]
        return self.rnn(before.unsqueeze(-1))[0].reshape(*x.shape, 8)


def with_a_map():
    return PixelCNN((3, 4), 8, 3, context=ConvDecoder(2, (1, 3, 4), [4]))


TRUNKS = {
    "MADE": (lambda: MADE((3, 4), [30, 30]), (3, 4)),
    "MADE in a random order": (lambda: MADE((3, 4), [30], order="random"), (3, 4)),
    "MADE with masks": (lambda: MADE(12, [30], order="random", num_masks=3), 12),
    "MADE with direct connections": (
        lambda: MADE(12, [30], order="random", num_masks=2, direct_connections=True),
        12,
    ),
    "MADE with a context": (lambda: MADE(12, [30], context=MLP(2, [4])), 12),
    "PixelCNN": (lambda: PixelCNN((1, 3, 4), 8, 3), (1, 3, 4)),
    "PixelCNN, gated, of colours": (lambda: PixelCNN((3, 2, 2), 8, 3, gated=True), (3, 2, 2)),
    "PixelCNN with a map": (lambda: with_a_map(), (3, 4)),
    "CausalConv1d": (lambda: CausalConv1d((6, 2), 8, 3), (6, 2)),
    "CausalRNN": (lambda: CausalRNN((6, 2), 8), (6, 2)),
    "one's own": (lambda: Shifted(), (3, 4)),
}


def built(name, scale=0.1):
    torch.manual_seed(0)
    build, shape = TRUNKS[name]
    p = Autoregressive(dist.Bernoulli, build(), shape).eval()
    with torch.no_grad():
        for weight in p.parameters():
            weight += scale * torch.randn_like(weight)
    context = (torch.randn(2),) if getattr(p.trunk, "context", None) is not None else ()
    return p, context


@pytest.mark.parametrize("name", TRUNKS)
def test_probabilities_of_all_images_sum_to_one(name):
    p, context = built(name)
    images = IMAGES.reshape(-1, *p.event_shape)
    log_p = p.double()(*(part.double() for part in context)).log_prob(images.double())
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    assert log_p.std() > 0.1


@pytest.mark.parametrize("name", TRUNKS)
def test_draws_have_these_probabilities(name):
    """Pearson's statistic of 20,000 draws in cells of about equal probability."""
    p, context = built(name)
    count = 20_000
    images = IMAGES.reshape(-1, *p.event_shape)
    with torch.no_grad():
        log_p = p(*context).log_prob(images).double()
        draws = p(*context).sample((count,)).reshape(count, 12)
    index = (draws * 2.0 ** torch.arange(11, -1, -1)).sum(1).long()
    # Images in an order that has nothing to do with their probability, cut into cells.
    order = torch.randperm(4096, generator=torch.Generator().manual_seed(0))
    shares = log_p.exp()[order]
    cells = (50 * shares.cumsum(0)).long().clamp(max=49)
    expected = torch.zeros(50).double().index_add(0, cells, shares) * count
    counts = torch.bincount(index, minlength=4096)[order].double()
    found = torch.zeros(50).double().index_add(0, cells, counts)
    used = expected > 5
    statistic = ((found - expected)[used].square() / expected[used]).sum().item()
    assert stats.chi2.sf(statistic, int(used.sum()) - 1) > 1e-4


@pytest.mark.parametrize("name", [name for name in TRUNKS if "masks" not in name])
def test_density_is_the_sum_of_the_conditionals(name):
    """Of log p(x_i | x_<i), each a ratio of sums over all images that agree so far."""
    p, context = built(name)
    images = IMAGES.reshape(-1, *p.event_shape)
    with torch.no_grad():
        joint = p.double()(*(part.double() for part in context)).log_prob(images.double())
    x = IMAGES[1234]
    total = 0.0
    agree = torch.ones(4096, dtype=torch.bool)
    places = p.ranks[0].argsort(stable=True)
    for place in places.tolist():
        before = joint[agree].logsumexp(0)
        agree &= IMAGES[:, place] == x[place]
        total += (joint[agree].logsumexp(0) - before).item()
    assert total == pytest.approx(joint[1234].item(), abs=1e-9)


def test_conditionals_are_the_networks_parameters():
    """The first element's probability is that of the network at any image."""
    p, _ = built("PixelCNN")
    with torch.no_grad():
        log_p = p().log_prob(IMAGES.reshape(-1, 1, 3, 4))
        logits = p.heads["logits"](p.trunk(IMAGES.reshape(-1, 1, 3, 4)))
    on = log_p[IMAGES[:, 0] == 1].logsumexp(0)
    torch.testing.assert_close(on, nn.functional.logsigmoid(logits[77, 0, 0, 0]))


@pytest.mark.parametrize("name", ["MADE with a context", "PixelCNN with a map"])
def test_particles_are_one_by_one(name):
    p, _ = built(name)
    torch.manual_seed(1)
    z = torch.randn(5, 3, 2)
    x = torch.rand(3, *p.event_shape).round()
    together = p(z).log_prob(x)
    assert together.shape == (5, 3)
    for k, n in itertools.product(range(5), range(3)):
        torch.testing.assert_close(together[k, n], p(z[k, n]).log_prob(x[n]))
    draws = p(z).sample((2,))
    assert draws.shape == (2, 5, 3, *p.event_shape)
    masked = p(z).mask(torch.tensor([True, False, True])).log_prob(x)
    torch.testing.assert_close(masked, together * torch.tensor([1.0, 0.0, 1.0]))


def test_values_with_more_dimensions_than_the_batch():
    p, _ = built("MADE")
    x = torch.rand(5, 3, 3, 4).round()
    density = p().log_prob(x)
    torch.testing.assert_close(density, p().log_prob(x.reshape(15, 3, 4)).reshape(5, 3))
    assert p().expand((7, 3)).log_prob(x[0]).shape == (7, 3)
    assert p().expand((7,)).sample((2,)).shape == (2, 7, 3, 4)


@pytest.mark.parametrize("name", TRUNKS)
def test_gradients_against_finite_differences(name):
    p, context = built(name)
    p = p.double()
    x = torch.rand(2, *p.event_shape).round().double()
    context = tuple(part.double() for part in context)
    weights = [weight for weight in p.parameters() if weight.requires_grad]
    loss = p(*context).log_prob(x).sum()
    gradients = torch.autograd.grad(loss, weights)
    torch.manual_seed(2)
    directions = [torch.randn_like(weight) for weight in weights]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    ends = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight += sign * 1e-6 * direction
            ends.append(p(*context).log_prob(x).sum())
            for weight, direction in zip(weights, directions, strict=True):
                weight -= sign * 1e-6 * direction
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "trunk", "shape", "fixed"),
    [
        (dist.Normal, MADE(4, [20]), 4, {}),
        (dist.Normal, MADE(4, [20]), 4, {"scale": torch.tensor([0.1, 1.0, 10.0, 100.0])}),
        (dist.Normal, MADE((2, 2), [9]), (2, 2), {"scale": nn.Parameter(torch.tensor(0.1))}),
        (
            dist.Categorical,
            PixelCNN((2, 3), 8, 2, num_classes=5),
            (2, 3),
            {"param_shapes": {"logits": (2, 3, 5)}},
        ),
        (dist.OneHotCategorical, CausalRNN((6, 5)), (6, 5), {}),
        (
            dist.OneHotCategorical,
            MADE((3, 5), [20], order=torch.arange(3).reshape(3, 1).expand(3, 5)),
            (3, 5),
            {},
        ),
        (dist.MultivariateNormal, CausalConv1d((5, 3)), (5, 3), {}),
        (DiscretizedLogisticMixture, PixelCNN((3, 2, 2), 8, 2), (3, 2, 2), {}),
        (dist.Beta, MADE(4, [20]), 4, {}),
        (Gamma, MADE(4, [20]), 4, {}),
        (dist.Poisson, CausalConv1d(6), 6, {}),
    ],
)
def test_families(family, trunk, shape, fixed):
    """Draws that keep what earlier steps computed are those of whole passes, and their density
    is that of the family with the network's parameters.
    """
    torch.manual_seed(0)
    p = Autoregressive(family, trunk, shape, **fixed)
    torch.manual_seed(1)
    with torch.no_grad():
        x = p.sample(sample_shape=6)
    torch.manual_seed(1)
    whole = p().rsample((6,)) if p().has_rsample else p.draw(torch.Size([6]), ())
    torch.testing.assert_close(x, whole.detach())
    assert x.shape == (6, *p.event_shape)
    assert p().support.check(x).all()
    features = p.trunk(x.to(torch.float32))
    free = {name: head(features) for name, head in p.heads.items()}
    torch.testing.assert_close(p().log_prob(x), p.distribution(free).log_prob(x))


def test_scales_of_the_positions_are_their_own():
    torch.manual_seed(0)
    scale = torch.tensor([0.1, 1.0, 10.0])
    p = Autoregressive(dist.Normal, MADE(3, [8]), 3, scale=scale)
    found = p().sample((4000,)).std(0) / scale
    assert ((found - 1).abs() < 4 / (2 * 4000) ** 0.5 + 0.05).all()


def test_reparameterized_draws_carry_gradients_through_all_steps():
    torch.manual_seed(0)
    q = Autoregressive(dist.Normal, MADE(3, [8], context=2, activation=nn.Tanh), 3).double()
    nn.init.normal_(q.heads["scale"].weight)
    c = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def draw(c):
        torch.manual_seed(1)
        return q(c).rsample()

    assert torch.autograd.gradcheck(draw, c)
    assert not Autoregressive(Gamma, MADE(3, [8]), 3)().has_rsample  # only in part
    with pytest.raises(NotImplementedError, match="Bernoulli has no reparameterized draws"):
        Autoregressive(dist.Bernoulli, MADE(3, [8]), 3)().rsample()


# --- masks


def test_several_masks_are_a_mixture():
    p, _ = built("MADE with masks")
    x = IMAGES[:50]
    with torch.no_grad():
        each = []
        for mask in range(3):
            logits = p.heads["logits"](p.trunk(x, mask=mask), mask)
            each.append(dist.Bernoulli(logits=logits).to_event(1).log_prob(x))
        mixture = torch.stack(each).logsumexp(0) - math.log(3)
        torch.testing.assert_close(p().log_prob(x), mixture)
        p.train()
        torch.manual_seed(0)
        found = {tuple(p().log_prob(x).tolist()) for _ in range(30)}
    assert found == {tuple(row.tolist()) for row in each}


# --- completions


@pytest.mark.parametrize("name", ["MADE in a random order", "MADE with masks", "PixelCNN"])
def test_completions_have_the_exact_conditional(name):
    p, _ = built(name, scale=0.3)
    images = IMAGES.reshape(-1, *p.event_shape)
    known = p.ranks[0].reshape(p.event_shape) < 9
    if name == "MADE with masks":
        torch.manual_seed(0)
        p = Autoregressive(dist.Bernoulli, MADE(12, [30], num_masks=3), 12).eval()
        for weight in p.parameters():
            nn.init.normal_(weight, 0.0, 0.7)
        known = torch.arange(12) < 9
    assert p().completes(known).all()
    value = images[2345].clone()
    value[~known] = math.nan
    with torch.no_grad():
        draws = p().complete(value.nan_to_num(0.0).expand(4000, *value.shape), known)
        log_p = p().log_prob(images)
    assert (draws[:, known] == value[known]).all()
    agree = (images[:, known] == value[known]).all(1)
    exact = log_p[agree].double().softmax(0)
    counts = []
    for rest in images[agree]:
        counts.append((draws == rest).flatten(1).all(1).sum())
    assert stats.chisquare(torch.stack(counts), 4000 * exact).pvalue > 1e-4


def test_completions_of_what_comes_before_are_refused():
    p, _ = built("PixelCNN")
    known = torch.zeros(2, 1, 3, 4, dtype=torch.bool)
    known[0, :, :2] = True
    known[1, :, 1:] = True
    assert p().completes(known).tolist() == [True, False]
    one_late = torch.arange(12).reshape(1, 3, 4)
    assert not p().completes((one_late < 5) | (one_late == 6))
    assert p().completes(torch.ones(1, 3, 4, dtype=torch.bool))
    assert p().completes(torch.zeros(1, 3, 4, dtype=torch.bool))


# --- trunks of one's own


class Mixed(nn.Module):
    """It looks causal with its initial weights, which are zero where it peeks."""

    out_features = 4

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(4, 6, 6))
        self.bias = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return torch.einsum("nj,fij->nif", x, self.weights) + self.bias


class Masked(Mixed):
    def forward(self, x):
        weights = self.weights * torch.ones(6, 6).tril(-1)
        return torch.einsum("nj,fij->nif", x, weights.to(x)) + self.bias


class Backwards(Mixed):
    def forward(self, x):
        weights = self.weights * torch.ones(6, 6).triu(1)
        return torch.einsum("nj,fij->nif", x, weights.to(x)) + self.bias


class OneHot(nn.Module):
    in_shapes = ((4,), (2,))
    out_features = 12

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, x, c):
        before = nn.functional.pad(nn.functional.one_hot(x.long(), 10), (0, 0, self.shift, 0))
        return torch.cat([before[:, : x.shape[1]].to(c), c.unsqueeze(1).expand(-1, 4, -1)], 2)


def test_a_trunk_that_peeks_is_refused():
    words = "must see at each position the positions before it alone"
    with pytest.raises(ValueError, match=words):
        Autoregressive(dist.Bernoulli, Shifted(shift=0), (3, 4))()
    with pytest.raises(ValueError, match=words):
        Autoregressive(dist.Normal, Mixed(), 6)()
    with pytest.raises(ValueError, match=words):
        Autoregressive(dist.Normal, Backwards(), 6)()
    with pytest.raises(ValueError, match=words):  # its shapes are known, so at once
        Autoregressive(dist.Categorical, OneHot(0), 4, param_shapes={"logits": (4, 10)})


def test_a_causal_trunk_is_taken():
    Autoregressive(dist.Normal, Masked(), 6)()
    p = Autoregressive(dist.Normal, Backwards(), 6, order=torch.arange(6).flip(0))
    x = p().sample((5,))
    assert p().log_prob(x).shape == (5,)
    c = torch.zeros(3, 2)
    q = Autoregressive(dist.Categorical, OneHot(1), 4, param_shapes={"logits": (4, 10)})
    assert q(c).sample().shape == (3, 4)


def test_the_check_changes_nothing():
    trunk = Shifted()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    p = Autoregressive(dist.Normal, trunk, (3, 4))
    state = torch.get_rng_state()
    p()
    assert torch.get_rng_state().equal(state)
    assert p.trunk.training
    assert all(value.equal(before[name]) for name, value in trunk.state_dict().items())


def test_a_lazy_head_gets_its_size_from_the_check():
    class Untold(Shifted):
        out_features = None

    p = Autoregressive(dist.Normal, Untold(), (3, 4))
    assert p().sample((5,)).shape == (5, 3, 4)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: Autoregressive(dist.Normal, MADE(4, [5]), 5),
            "trunk must be for draws of shape",
        ),
        (
            lambda: Autoregressive(dist.Normal, MADE(4, [5]), 4, order=torch.arange(4)),
            "order is for a trunk of one's own",
        ),
        (
            lambda: Autoregressive(dist.OneHotCategorical, MADE((2, 3), [5]), (2, 3)),
            "must draw the vectors of OneHotCategorical as a whole",
        ),
        (
            lambda: Autoregressive(
                dist.Categorical, MADE(4, [5]), 4, param_shapes={"logits": (3,)}
            ),
            "logits must have the shape of the positions",
        ),
    ],
)
def test_errors(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_features_of_another_shape():
    with pytest.raises(
        ValueError, match="trunk must return features with the positions' shape"
    ):
        Autoregressive(dist.Normal, nn.Linear(6, 4), 6)()


def test_there_is_no_mean():
    p, _ = built("MADE")
    with pytest.raises(NotImplementedError, match="has no mean in closed form"):
        p.mean()
    for name in ("mean", "variance"):
        with pytest.raises(NotImplementedError):
            getattr(p(), name)


def test_values_outside_the_support():
    p, _ = built("MADE")
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="support"):
        p().log_prob(torch.full((3, 4), 0.5))
    grey = Autoregressive(dist.Bernoulli, MADE(4, [5]), 4, validate_args=False)
    with pyro.validation_enabled(True):
        assert grey().log_prob(torch.full((4,), 0.5)).isfinite()


# --- in pairs


def pixel_vae(family=dist.Bernoulli):
    torch.manual_seed(0)
    trunk = PixelCNN((1, 3, 4), 4, 2, context=ConvDecoder(2, (1, 3, 4), [4]))
    likelihood = Autoregressive(family, trunk, (1, 3, 4))
    p = models.VAE(default_prior(dist.Normal, 2), likelihood)
    return p, guides.VAE(Conditional(dist.Normal, MLP((1, 3, 4), [8]), 2))


def discrete():
    torch.manual_seed(0)
    p = models.VAE(
        Autoregressive(dist.Bernoulli, MADE(3, [8]), 3),
        Conditional(dist.Bernoulli, MLP(3, [8]), (1, 3, 4)),
    )
    trunk = MADE(3, [8], context=MLP((1, 3, 4), [8]))
    return p, guides.VAE(Autoregressive(dist.Bernoulli, trunk, 3))


def test_log_likelihood_of_a_pixel_vae_against_quadrature():
    p, q = pixel_vae()
    x = IMAGES[[3, 1000]].reshape(-1, 1, 3, 4)
    grid = torch.cartesian_prod(torch.linspace(-6, 6, 81), torch.linspace(-6, 6, 81))
    with torch.no_grad():
        joint = p.likelihood(grid).log_prob(x.unsqueeze(1)) + p.prior().log_prob(grid)
    exact = joint.logsumexp(1) + 2 * math.log(12 / 80)
    found = evaluate.log_likelihood(p, q, x, num_particles=20_000, errors=True, seed=0)
    assert ((found.log_likelihood - exact).abs() < 4 * found.standard_error + 1e-4).all()


def test_bound_of_discrete_codes_against_enumeration():
    """With an autoregressive prior and an autoregressive guide of three bits."""
    p, q = discrete()
    x = IMAGES[[3, 1000]].reshape(-1, 1, 3, 4)
    z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    with torch.no_grad():
        joint = p.likelihood(z).log_prob(x.unsqueeze(1)) + p.prior().log_prob(z)
        guide = torch.stack([q.posterior(x).log_prob(row) for row in z], 1)
    bound = (guide.exp() * (joint - guide)).sum(1)
    assert guide.exp().sum(1).allclose(torch.ones(2))
    found = evaluate.elbo(p, q, x, num_particles=20_000, seed=0).elbo
    deviation = ((guide.exp() * (joint - guide).square()).sum(1) - bound**2).sqrt()
    assert ((found - bound).abs() < 4 * deviation / 20_000**0.5).all()


@pytest.mark.parametrize("build", [pixel_vae, discrete])
@pytest.mark.parametrize("loss", [ELBO(), IWAE(num_particles=3)], ids=["ELBO", "IWAE"])
def test_compiled_losses_are_the_same(build, loss):
    p, q = build()
    x = IMAGES[:20].reshape(-1, 1, 3, 4)
    torch.manual_seed(0)
    eager = loss.differentiable_loss(p, q, x)
    expected = torch.autograd.grad(eager, list(p.parameters()))
    compiled = Compiled(loss, backend="eager")
    for _ in range(2):
        torch.manual_seed(0)
        value = compiled.differentiable_loss(p, q, x)
    torch.testing.assert_close(value, eager)
    found = torch.autograd.grad(value, list(p.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_runs_are_loaded_with_their_masks(tmp_path):
    p = models.VAE(
        Autoregressive(dist.Bernoulli, MADE(3, [8], order="random", seed=5, num_masks=2), 3),
        Conditional(dist.Bernoulli, MLP(3, [8]), (1, 3, 4)),
    )
    q = guides.VAE(Conditional(dist.Bernoulli, MLP((1, 3, 4), [8]), 3))
    x = IMAGES[:20].reshape(-1, 1, 3, 4)
    fit(p, q, x, epochs=1, folder=tmp_path / "run", seed=0, progress=False)
    run = load_run(tmp_path / "run")
    z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    one, other = (half.eval().prior().log_prob(z) for half in (p, run.model))
    torch.testing.assert_close(one, other)


def test_a_pixel_vae_is_better_than_the_vae_of_the_same_encoder():
    """On the digits, with the same training; the code is used."""
    digits = data.digits(flatten=False)
    test = torch.bernoulli(digits.test.x, generator=torch.Generator().manual_seed(0))
    image = (1, 8, 8)
    bounds = []
    for pixels in (False, True):
        torch.manual_seed(0)
        decoder = ConvDecoder(8, image, [32])
        likelihood = Conditional(dist.Bernoulli, decoder, image)
        if pixels:
            trunk = PixelCNN(image, 16, 2, context=decoder)
            likelihood = Autoregressive(dist.Bernoulli, trunk, image)
        p = models.VAE(default_prior(dist.Normal, 8), likelihood)
        q = guides.VAE(Conditional(dist.Normal, MLP(image, [128]), 8))
        options = {"epochs": 20, "lr": 5e-3, "batch_size": 50, "binarize": True, "seed": 0}
        fit(p, q, digits.train, progress=False, **options)
        bounds.append(evaluate.elbo(p, q, test, num_particles=5, seed=0))
    difference = bounds[1].elbo - bounds[0].elbo
    assert difference.mean() > 4 * difference.std() / len(test) ** 0.5
    assert bounds[1].kl.mean() > 1.0

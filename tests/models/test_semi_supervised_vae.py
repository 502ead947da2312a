"""The semi-supervised VAE, against a linear Gaussian mixture with known values."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from tarspyro import (
    Conditional,
    Run,
    data,
    distributions,
    evaluate,
    fit,
    guides,
    load_run,
    models,
)
from tarspyro.distributions import GumbelSoftmax, Prior, default_prior
from tarspyro.infer import ELBO, IWAE, PairError, Renyi, SemiSupervised, check_pair
from tarspyro.infer.traces import InputError
from tarspyro.nn import MLP
from tarspyro.sources import as_arguments

from ..infer.test_compiled import assert_same_step
from ..programs import as_made, assert_within

K, SCALE = 3, 0.6
ROWS = {"labelled": 4, "unlabelled": 6}
SIZES = {"num_labelled": 20, "num_unlabelled": 90}


def randn(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


class Gaussian(nn.Module):
    """z ~ N(0, I_2), y ~ p(y), x | z, y ~ N(Wz + Ay, s^2 I_4), with exact or perturbed
    posteriors.
    """

    def __init__(self, off=0.0):
        super().__init__()
        self.off = off
        self.weight, self.shift = (
            nn.Parameter(randn(4, 2)),
            nn.Parameter(2 * randn(4, K, seed=1)),
        )
        self.logits = nn.Parameter(randn(K, seed=2))
        self.error = nn.Parameter(off * randn(K, seed=3))
        covariance = self.weight @ self.weight.T + SCALE**2 * torch.eye(4, dtype=torch.float64)
        self.covariance = covariance.detach()
        self.y = torch.eye(K, dtype=torch.float64)[torch.arange(4) % K]
        self.x = randn(4, 2, seed=4) @ self.weight.detach().T + self.y @ self.shift.detach().T
        self.unlabelled = self.x[[0, 1, 2, 3, 0, 1]] + randn(6, 4, seed=5)

    def label_prior(self):
        return dist.OneHotCategorical(logits=self.logits)

    def likelihood(self, z, y):
        return dist.Normal(z @ self.weight.T + y @ self.shift.T, SCALE).to_event(1)

    def log_joint(self, x):
        """log p(x, y) for each label."""
        means = self.shift.T.unsqueeze(1)
        density = MultivariateNormal(
            means, self.weight @ self.weight.T + SCALE**2 * torch.eye(4)
        ).log_prob(x)
        return density.T + torch.log_softmax(self.logits, -1)

    def classifier(self, x):
        return dist.OneHotCategorical(logits=self.log_joint(x) + self.error)

    def posterior(self, x, y):
        precision = torch.eye(2) + self.weight.T @ self.weight / SCALE**2
        loc = (x - y @ self.shift.T) @ self.weight @ precision.inverse() / SCALE**2
        return MultivariateNormalOfPyro(loc + self.off, precision.inverse() * (1 + self.off))

    def elbo(self, x, y):
        """The bound given labels, in closed form: all distributions are Gaussian."""
        q = self.posterior(x, y)
        prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
        mean = q.loc @ self.weight.T + y @ self.shift.T
        spread = (
            (self.weight @ q.covariance_matrix @ self.weight.T)
            .diagonal(dim1=-2, dim2=-1)
            .sum(-1)
        )
        fit_of_x = -(((x - mean) ** 2).sum(-1) + spread) / (2 * SCALE**2) - 2 * math.log(
            2 * math.pi * SCALE**2
        )
        label = (y * torch.log_softmax(self.logits, -1)).sum(-1)
        return fit_of_x - kl_divergence(q, prior) + label

    def elbo_unlabelled(self, x):
        """The bound with labels summed out."""
        log_q = torch.log_softmax(self.classifier(x).logits, -1)
        each = torch.stack(
            [self.elbo(x, label.expand(len(x), K)) for label in torch.eye(K)], -1
        )
        return (log_q.exp() * (each - log_q)).sum(-1)

    def pair(self, **options):
        prior = Prior(dist.Normal, 2, loc=0.0, scale=1.0)
        sizes = {name: options.pop(name) for name in SIZES if name in options}
        model = models.SemiSupervisedVAE(
            prior, self.label_prior, self.likelihood, **sizes, **options
        )
        return model, guides.SemiSupervisedVAE(self.classifier, self.posterior, **sizes)

    def arguments(self, given):
        return {
            "both": (self.x, self.y, self.unlabelled),
            "labelled": (self.x, self.y),
            "unlabelled": (None, None, self.unlabelled),
            "x alone": (self.unlabelled,),
        }[given]


MultivariateNormalOfPyro = dist.MultivariateNormal
GIVEN = ["both", "labelled", "unlabelled", "x alone"]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def weighted(given, labelled, unlabelled, sizes):
    """The sum over the given rows, each weighted by the size of its data set."""
    total = 0.0
    if given in ("both", "labelled"):
        total = total + labelled.sum() * (sizes.get("num_labelled", 4) / 4)
    if given != "labelled":
        total = total + unlabelled.sum() * (sizes.get("num_unlabelled", 6) / 6)
    return total


@pytest.mark.parametrize("sizes", [{}, SIZES], ids=["rows", "subsamples"])
@pytest.mark.parametrize("given", GIVEN)
def test_with_the_exact_posterior_the_bound_is_the_log_likelihood(given, sizes, double):
    """There is no noise, so each term counts. p(y) is a probability, to which Tars adds 0.1."""
    toy = Gaussian()
    model, guide = toy.pair(**sizes)
    log_joint = (toy.y * toy.log_joint(toy.x)).sum(-1)
    exact = weighted(given, log_joint, toy.log_joint(toy.unlabelled).logsumexp(-1), sizes)
    for options in ({}, {"num_particles": 2}):
        loss = ELBO(analytic_kl=False, **options).differentiable_loss(
            model, guide, *toy.arguments(given)
        )
        assert loss.item() == pytest.approx(-exact.item())
    if given != "both":  # one weight for each data point, under any bound
        for bound in (IWAE(3), Renyi(0.5, 3)):
            assert bound.loss(model, guide, *toy.arguments(given)) == pytest.approx(
                -exact.item()
            )


@pytest.mark.parametrize("given", GIVEN)
def test_value_and_gradient_are_the_closed_form(given, double):
    toy = Gaussian(off=0.3)
    model, guide = toy.pair(**SIZES)
    exact = weighted(given, toy.elbo(toy.x, toy.y), toy.elbo_unlabelled(toy.unlabelled), SIZES)
    parameters = (
        list(toy.parameters()) if given != "labelled" else [toy.weight, toy.shift, toy.logits]
    )
    expected = [exact.detach(), *torch.autograd.grad(exact, parameters)]
    bound, draws = ELBO(), []
    with pyro.validation_enabled(False):
        for _ in range(150):
            loss = bound.differentiable_loss(model, guide, *toy.arguments(given))
            found = [loss.detach(), *torch.autograd.grad(loss, parameters)]
            draws.append(-torch.cat([entry.flatten() for entry in found]))
    assert_within(torch.stack(draws), torch.cat([entry.flatten() for entry in expected]))


def test_equals_pyro_s_bound_with_enumeration(double):
    toy = Gaussian()
    model, guide = toy.pair(**SIZES)
    arguments = toy.arguments("both")
    theirs = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, *arguments)
    assert ELBO(analytic_kl=False).loss(model, guide, *arguments) == pytest.approx(theirs)


def test_likelihoods_of_rows_with_and_without_labels(double):
    toy = Gaussian(off=0.3)
    model, guide = toy.pair(**SIZES)
    truths = {
        "x alone": (
            toy.log_joint(toy.unlabelled).logsumexp(-1),
            toy.elbo_unlabelled(toy.unlabelled),
        ),
        "labelled": ((toy.y * toy.log_joint(toy.x)).sum(-1), toy.elbo(toy.x, toy.y)),
    }
    for given, (log_likelihood, elbo) in truths.items():
        x = toy.arguments(given)
        found = evaluate.log_likelihood(
            model, guide, x, num_particles=3000, errors=True, seed=0
        )
        off = (found.log_likelihood - log_likelihood).abs()
        assert (off < 4 * found.standard_error).all(), given
        bounds = torch.stack([evaluate.elbo(model, guide, x).elbo for _ in range(100)])
        assert_within(bounds, elbo.detach(), given)
        assert (elbo < log_likelihood).all()


def test_labels_are_summed_out_and_not_averaged(double):
    """The bound has the classifier's entropy; Tars uses the mean of q(y | x) in place of y."""
    toy = Gaussian(off=0.3)
    model, guide = toy.pair()
    plain = evaluate.elbo(model, guide, toy.unlabelled.repeat(300, 1)).elbo.reshape(300, 6)
    guide.enumerate = False
    drawn = evaluate.elbo(model, guide, toy.unlabelled.repeat(3000, 1)).elbo.reshape(3000, 6)
    assert_within(drawn, toy.elbo_unlabelled(toy.unlabelled).detach())
    assert plain.var(0).sum() < drawn.var(0).sum()


@pytest.mark.parametrize("given", ["both", "labelled"])
@pytest.mark.parametrize("sizes", [{}, SIZES], ids=["rows", "subsamples"])
@pytest.mark.parametrize(
    "bound", [ELBO(analytic_kl=False), IWAE(3)], ids=lambda bound: type(bound).__name__
)
def test_the_classifier_s_term_is_that_of_the_paper(bound, sizes, given, double):
    """It is alpha N times the mean over the labelled rows of the categorical log-probability
    (eq. 9).
    """
    toy = Gaussian()
    arguments = toy.arguments(given)
    model, guide = toy.pair(**sizes)
    guide.enumerate = isinstance(bound, ELBO)
    exact = (toy.y * torch.log_softmax(toy.log_joint(toy.x), -1)).sum(-1).mean()
    num = sizes.get("num_labelled", 4) + (
        sizes.get("num_unlabelled", 6) if given == "both" or sizes else 0
    )
    loss = SemiSupervised(bound, alpha=0.3)
    with pyro.validation_enabled(False):
        torch.manual_seed(0)
        value, terms = bound.loss_and_terms(model, guide, *arguments)
        torch.manual_seed(0)
        further, named = loss.loss_and_terms(model, guide, *arguments)
    assert (further - value).item() == pytest.approx(-0.3 * num * exact.item())
    assert named.pop("classifier").item() == pytest.approx(num * exact.item())
    assert named.pop("bound").item() == pytest.approx(-value.item())
    assert named == terms  # what is the bound's own stays as it is
    check_pair(model, guide, *arguments)
    guide.eval()
    torch.manual_seed(0)
    assert loss.loss(model, guide, *arguments) == pytest.approx(value.item())


def test_the_classifier_s_term_has_a_gradient_that_scales_with_alpha(double):
    toy = Gaussian(off=0.3)
    model, guide = toy.pair(**SIZES)
    exact = 110 * (toy.y * torch.log_softmax(toy.classifier(toy.x).logits, -1)).sum(-1).mean()
    (expected,) = torch.autograd.grad(exact, toy.error)
    found = []
    for alpha in (1.0, 1.5):
        torch.manual_seed(0)
        loss = SemiSupervised(ELBO(), alpha).differentiable_loss(
            model, guide, *toy.arguments("both")
        )
        found.append(torch.autograd.grad(loss, toy.error)[0])
    torch.testing.assert_close(found[1] - found[0], -0.5 * expected)


def test_the_history_s_elbo_is_that_of_the_bound():
    """It does not depend on alpha; the classifier's term has its own name."""
    torch.manual_seed(0)
    p, q = make_pair()
    still = {
        "optimizer": torch.optim.SGD,
        "lr": 0.0,
        "progress": False,
        "seed": 0,
    }
    binary = [data.Split(part.x.round(), part.y) for part in DIGITS]
    x = data.PartlyLabelled(*binary, batch_size=250, labelled_batch_size=50)
    rows = [
        fit(p, q, x, loss=loss, epochs=1, **still).rows[0]
        for loss in (ELBO(), SemiSupervised(ELBO(), 5.0))
    ]
    plain, row = rows
    for name in ("elbo", "reconstruction", "kl"):
        assert row[name] == pytest.approx(plain[name], rel=1e-5)
    assert row["bound"] == pytest.approx(row["elbo"], rel=1e-5)
    labels = torch.eye(10)[DIGITS[0].y]
    log_q = (
        (labels * torch.log_softmax(q.classifier(DIGITS[0].x.round()).logits, -1))
        .sum(-1)
        .mean()
        .item()
    )
    assert row["classifier"] == pytest.approx(log_q, abs=0.2)
    assert row["loss"] == pytest.approx(-row["elbo"] - 5 * row["classifier"], rel=1e-5)


def test_a_given_label_is_scored_as_discrete():
    """The density of a relaxed variable at a corner of the simplex has no meaning."""
    toy = make_pair("Normal", GumbelSoftmax)
    x, y = torch.rand(5, 64).round(), torch.eye(10)[:5]
    trace = pyro.poutine.trace(toy[0]).get_trace(x, y)
    trace.compute_log_prob()
    torch.testing.assert_close(
        trace.nodes["y"]["unscaled_log_prob"], torch.full((5,), -math.log(10))
    )
    probs = evaluate.classify(toy[1], x)
    _, terms = SemiSupervised(ELBO()).loss_and_terms(*toy, x, y)
    torch.testing.assert_close(terms["classifier"], 300 * probs[:, :5].diagonal().log().mean())


# --- training


def make_pair(family="Normal", labels=dist.OneHotCategorical, sizes=None, **options):
    family = getattr(distributions, family, None) or getattr(dist, family)
    sizes = SIZES_OF_DIGITS if sizes is None else sizes
    q = Conditional(labels, MLP(64, [16]), 10, **options)
    model = models.SemiSupervisedVAE(
        default_prior(family, 4),
        default_prior(labels, 10, **options),
        Conditional(dist.Bernoulli, MLP([4, 10], [16]), 64),
        **sizes,
    )
    return model, guides.SemiSupervisedVAE(
        q, Conditional(family, MLP([64, 10], [16]), 4), **sizes
    )


DIGITS = data.labelled_subset(data.digits().train[:300], 50)
SIZES_OF_DIGITS = {"num_labelled": 50, "num_unlabelled": 250}
BOUNDS = {
    "ELBO": lambda: ELBO(),
    "ELBO, particles": lambda: ELBO(2, beta=0.5),
    "IWAE": lambda: IWAE(2),
    "Renyi": lambda: Renyi(0.5, 2),
    "IWAE, dreg": lambda: IWAE(2, gradient="dreg"),
}
LABELS = {
    "enumerated": (dist.OneHotCategorical, {}),
    "relaxed": (GumbelSoftmax, {}),
    "straight through": (GumbelSoftmax, {"hard": True}),
}


def batches(**options):
    return data.PartlyLabelled(
        *DIGITS, batch_size=50, labelled_batch_size=20, binarize=True, **options
    )


FAMILIES = ["Normal", "Gamma", "Dirichlet", "GumbelSoftmax"]
KINDS = [
    *((family, "enumerated") for family in FAMILIES),
    ("Normal", "relaxed"),
    ("Gamma", "straight through"),
]


@pytest.mark.parametrize(("family", "labels"), KINDS)
@pytest.mark.parametrize("bound", BOUNDS)
def test_trains(bound, family, labels):
    torch.manual_seed(0)
    (family_of_labels, options) = LABELS[labels]
    p, q = make_pair(family, family_of_labels, **options)
    refused = bound == "IWAE, dreg" and (
        family in ("Gamma", "Dirichlet") or labels == "enumerated"
    )
    if refused:
        with pytest.raises(PairError, match="reparameterized"):
            fit(p, q, batches(), loss=BOUNDS[bound](), epochs=1, progress=False)
        return
    history = fit(
        *as_made(p, q),
        batches(),
        loss=SemiSupervised(BOUNDS[bound]()),
        epochs=4,
        lr=0.01,
        seed=0,
        progress=False,
    )
    assert history["loss"][-1] < history["loss"][0]
    x = data.digits().test.x[:20].round()
    check_pair(p, q, x)
    values = evaluate.log_likelihood(p, q, x, num_particles=5)
    assert values.shape == (20,) and values.isfinite().all()
    assert p(batch_size=3).shape == (3, 64) and p(y=torch.eye(10)).shape == (10, 64)


@pytest.mark.parametrize("given", ["both", "x alone"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("bound", ["ELBO, particles", "IWAE"])
def test_recorded_steps_are_the_eager_ones(bound, labels, given):
    torch.manual_seed(0)
    family, options = LABELS[labels]
    p, q = make_pair("Normal", family, **options)
    x = torch.rand(6, 64).round()
    arguments = (x[:2], torch.eye(10)[:2], x[2:]) if given == "both" else (x,)
    assert_same_step(SemiSupervised(BOUNDS[bound]()), p, q, *arguments)


def test_history_is_per_data_point():
    """Tars and Pixyz average over batches of both kinds, whatever the sizes of the data sets."""
    torch.manual_seed(0)
    p, q = as_made(*make_pair())
    plain = data.PartlyLabelled(*DIGITS, batch_size=250, labelled_batch_size=50)
    still = {"optimizer": torch.optim.SGD, "lr": 0.0, "progress": False}
    binary = [data.Split(part.x.round(), part.y) for part in DIGITS]
    y = torch.eye(10)[DIGITS[0].y]

    def elbo(*x):
        return torch.stack([evaluate.elbo(p, q, x).elbo.sum() for _ in range(50)])

    exact = (elbo(binary[0].x, y) + elbo(binary[1].x)) / 300
    for sizes in (SIZES_OF_DIGITS, {"num_labelled": 0, "num_unlabelled": 0}):
        for half in (p, q):
            vars(half).update(sizes)
        plain = data.PartlyLabelled(*binary, batch_size=250, labelled_batch_size=50)
        found = fit(p, q, plain, epochs=30, **still)["elbo"]
        assert_within(torch.tensor(found).double() - exact.mean(), 0.0)
    for half in (p, q):
        vars(half).update(SIZES_OF_DIGITS)
    small = data.PartlyLabelled(*binary, batch_size=50, labelled_batch_size=10)
    held_out = fit(p, q, small, validation=(binary[0].x, y), epochs=1, **still)[
        "validation_elbo"
    ][0]
    assert held_out == pytest.approx((elbo(binary[0].x, y) / 50).mean().item(), abs=0.5)


def test_the_classifier_is_trained_on_the_labels():
    """Of two trainings each, against the same without the loss of the classifier."""
    shares = []
    for loss in (ELBO(), SemiSupervised(ELBO())):
        found = []
        for seed in range(2):
            torch.manual_seed(seed)
            p, q = as_made(*make_pair())
            fit(p, q, batches(), loss=loss, epochs=30, lr=0.01, seed=seed, progress=False)
            found.append(evaluate.accuracy(q, DIGITS[1].x, DIGITS[1].y))
        shares.append(sum(found) / 2)
    count = 2 * len(DIGITS[1].x)
    variance = sum(share * (1 - share) / count for share in shares)
    assert shares[1] - shares[0] > 4 * variance**0.5 and shares[1] > 0.6


def test_on_the_codes_of_another_pair():
    """M1 + M2: the pair is trained on codes."""
    torch.manual_seed(0)
    first = (
        models.VAE(
            default_prior(dist.Normal, 6),
            Conditional(dist.Bernoulli, MLP(6, [32]), 64, validate_args=False),
        ),
        guides.VAE(Conditional(dist.Normal, MLP(64, [32]), 6)),
    )
    fit(
        *first,
        data.digits().train.x,
        epochs=15,
        lr=0.005,
        progress=False,
    )
    labelled, rest = (data.Split(evaluate.embed(first[1], part.x), part.y) for part in DIGITS)
    classifier = Conditional(dist.OneHotCategorical, MLP(6, [32]), 10)
    p = models.SemiSupervisedVAE(
        default_prior(dist.Normal, 4),
        default_prior(dist.OneHotCategorical, 10),
        Conditional(dist.Normal, MLP([4, 10], [32]), 6, scale=0.3),
        **SIZES_OF_DIGITS,
    )
    q = guides.SemiSupervisedVAE(
        classifier, Conditional(dist.Normal, MLP([6, 10], [32]), 4), **SIZES_OF_DIGITS
    )
    codes = data.PartlyLabelled(labelled, rest, batch_size=50)
    fit(
        p,
        q,
        codes,
        loss=SemiSupervised(ELBO(), 1.0),
        epochs=40,
        lr=0.01,
        progress=False,
    )
    assert evaluate.accuracy(q, rest.x, rest.y) > 0.6


def test_run_folders_restore_the_pair(tmp_path):
    torch.manual_seed(0)
    p, q = make_pair()
    loss = SemiSupervised(ELBO())
    fit(
        p, q, batches(), loss=loss, epochs=2, seed=0, folder=tmp_path / "whole", progress=False
    )
    run = load_run(tmp_path / "whole")
    assert str(run.model) == str(p) and str(run.guide) == str(q)
    x = DIGITS[1].x.round()
    torch.testing.assert_close(evaluate.classify(run.guide, x), evaluate.classify(q, x))
    one, two = (
        evaluate.elbo(*halves, x, seed=0).elbo for halves in ((p, q), (run.model, run.guide))
    )
    torch.testing.assert_close(one, two)
    # A run that stops half-way and goes on with the pair of its folder is the uninterrupted
    # one, batches included; but for rounding, because the first step of a process is
    # validated, and so computes probabilities earlier.
    torch.manual_seed(0)
    halves = make_pair()
    fit(
        *halves,
        batches(),
        loss=loss,
        epochs=1,
        seed=0,
        folder=tmp_path / "half",
        progress=False,
    )
    half = load_run(tmp_path / "half", "last")
    more = {
        "epochs": 2,
        "seed": 0,
        "folder": Run(tmp_path / "half", resume=True),
        "progress": False,
    }
    fit(half.model, half.guide, batches(), loss=loss, **more)
    for name, value in q.state_dict().items():
        torch.testing.assert_close(half.guide.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_printing_and_sites():
    p, q = make_pair()
    assert (
        p.formula == "p(x, y, z) = p(x | z, y) p(y) p(z)"
        and q.formula == "q(y, z | x) = q(y | x) q(z | x, y)"
    )
    x, y = torch.rand(3, 64).round(), torch.eye(10)[:3]
    assert p(x, y).shape == (3, 64) and p(unlabelled=x) is None and q(unlabelled=x) is None
    sites = [
        name
        for name, site in pyro.poutine.trace(p).get_trace(x, y, x).nodes.items()
        if site["type"] == "sample"
    ]
    pairs = [f"{name}_unlabelled" for name in "yzx"]
    assert [name for name in sites if "labelled" not in (name,)] == [
        "unlabelled",
        *pairs,
        *"yzx",
    ]
    assert evaluate.embed(q, (x, y)).shape == (3, 4)
    assert evaluate.embed(q, x, site="z").shape == (3, 4)
    assert evaluate.sample(p, 4, mean=True).shape == (4, 64)


def test_errors():
    p, q = make_pair()
    x, y = torch.rand(3, 64).round(), torch.arange(3)
    with pytest.raises(InputError, match="one-hot"):
        fit(p, q, data.Split(x, y), progress=False)
    with pytest.raises(ValueError, match="y is missing"):
        p(x, None, x)
    with pytest.raises(ValueError, match="alpha must be positive"):
        SemiSupervised(ELBO(), alpha=0)
    with pytest.raises(TypeError, match="SemiSupervised needs a guide with a classifier"):
        SemiSupervised(ELBO()).loss(p, lambda *data: q(*data), x)
    with pytest.raises(ValueError, match="lacks 'y'"):
        as_arguments({"x": x, "unlabelled": x}, p)


# --- batches with few labels


def test_labelled_subset_is_balanced_and_the_same_for_everybody():
    train = data.digits().train
    labelled, rest = data.labelled_subset(train, 100, seed=1)
    assert labelled.y.bincount().tolist() == [10] * 10 and len(rest) == len(train) - 100
    both = torch.cat(
        [torch.cat([part.x, part.y.unsqueeze(1)], 1) for part in (labelled, rest)]
    )
    whole = torch.cat([train.x, train.y.unsqueeze(1)], 1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, whole.tolist()))
    state = torch.get_rng_state()
    again = data.labelled_subset(train, 100, seed=1)[0]
    assert torch.equal(again.x, labelled.x) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(data.labelled_subset(train, 100, seed=2)[0].x, labelled.x)


def numbered(count, start=0):
    return data.Split(
        torch.arange(start, start + count).float().unsqueeze(1), torch.arange(count) % 2
    )


def test_batches_cycle_the_labelled_rows_and_pass_once_over_the_others():
    partly = data.PartlyLabelled(
        numbered(5), numbered(23, 100), batch_size=4, labelled_batch_size=3
    )
    torch.manual_seed(0)
    epochs = [list(partly) for _ in range(2)]
    assert len(partly) == len(epochs[0]) == 5
    for epoch in epochs:
        few, many = (torch.cat([batch[i] for batch in epoch]).flatten() for i in (0, 2))
        assert (
            few.long().bincount().tolist() == [3] * 5
            and len(many.unique()) == 20
            and many.min() >= 100
        )
        for start in range(0, 15, 5):
            assert sorted(few[start : start + 5].tolist()) == [0, 1, 2, 3, 4]
        for x, y, rows in epoch:
            assert torch.equal(y, torch.eye(2)[(x % 2).long().flatten()]) and len(rows) == 4
    assert any(not torch.equal(one[2], two[2]) for one, two in zip(*epochs, strict=True))


def test_batches_draw_pixels_of_both_kinds():
    grey = data.Split(torch.full((50, 8), 0.3), torch.arange(50) % 2)
    batch = next(
        iter(data.PartlyLabelled(grey, grey, batch_size=50, binarize=True, num_classes=4))
    )
    assert batch[1].shape == (50, 4)
    for part in (batch[0], batch[2]):
        assert set(part.unique().tolist()) == {0.0, 1.0}
        assert_within(part.flatten(), 0.3)
    assert not torch.equal(batch[0], batch[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.labelled_subset(numbered(10), 3), "multiple of the 2 classes"),
        (lambda: data.labelled_subset(numbered(10), 0), "multiple of the 2 classes"),
        (lambda: data.labelled_subset(numbered(10), 12), "asks for 6 rows of class 0"),
        (lambda: data.labelled_subset(data.Split(torch.zeros(3, 1)), 1), "no labels"),
        (
            lambda: data.PartlyLabelled(data.Split(torch.zeros(3, 1)), torch.zeros(3, 1)),
            "no labels",
        ),
        (
            lambda: data.PartlyLabelled(numbered(4), numbered(4), batch_size=5),
            "between 1 and 4, got 5",
        ),
    ],
)
def test_invalid_batches_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- classes


@pytest.mark.parametrize("family", [dist.OneHotCategorical, dist.Categorical, GumbelSoftmax])
def test_class_probabilities(family):
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))
            pyro.sample("y", family(logits=x))

    state = torch.get_rng_state()
    found = evaluate.classify(guide, logits.numpy())
    assert isinstance(found, np.ndarray) and torch.equal(torch.get_rng_state(), state)
    np.testing.assert_allclose(found, torch.softmax(logits, -1), rtol=1e-5)
    y = logits.argmax(-1)
    assert (
        evaluate.accuracy(guide, logits, y)
        == evaluate.accuracy(guide, logits.numpy(), torch.eye(4)[y].numpy())
        == 1
    )
    y[:2] = (y[:2] + 1) % 4
    assert evaluate.accuracy(guide, logits, y) == pytest.approx(5 / 7)
    for site in ("z", "w"):
        with pytest.raises(PairError, match="no class probabilities"):
            evaluate.classify(guide, logits, site=site)
    with pytest.raises(ValueError, match="each of the 7 rows"):
        evaluate.accuracy(guide, logits, y[:3])


def test_classes_use_evaluation_mode():
    torch.manual_seed(0)
    classifier = Conditional(dist.OneHotCategorical, MLP(64, [16], dropout=0.5), 10)
    guide = guides.SemiSupervisedVAE(
        classifier, Conditional(dist.Normal, MLP([64, 10], [8]), 2)
    )
    x = torch.rand(150, 64)
    found = evaluate.classify(guide, x)
    classifier.eval()
    torch.testing.assert_close(found, classifier(x).probs.detach())
    assert guide.training

"""The ELBO of models that sum sites out, against Pyro's TraceEnum_ELBO and enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

from tarspyro import evaluate, fit
from tarspyro.infer import ELBO, BetaTCVAE, Compiled, PairError

X = torch.tensor([1.0, -2.0, 0.3, 2.2])
MEANS = torch.tensor([-2.0, 0.0, 2.0])
PROBS = torch.tensor([0.2, 0.5, 0.3])
SCALES = torch.tensor([0.5, 1.0, 0.7])


class Pair(torch.nn.Module):
    """A code with a mixture as prior; the data depend on the component too, if they shall."""

    def __init__(self, deep: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.deep = deep
        self.scale = scale
        self.slope = torch.nn.Parameter(torch.tensor(0.8))
        self.mean = torch.nn.Parameter(MEANS.clone())

    def model(self, x):
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=self.scale):
            k = pyro.sample("k", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.mean[k], 1.0))
            noise = SCALES[k] if self.deep else 0.5
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=self.scale):
            pyro.sample("z", dist.Normal(self.slope * x, 0.6))

    def terms(self, x, z):
        """log p(x, z), log p(z) and log q(z) of each data point, summed by hand."""
        k = torch.arange(3)
        prior = PROBS.log() + dist.Normal(self.mean, 1.0).log_prob(z.unsqueeze(-1))
        noise = SCALES[k] if self.deep else torch.tensor(0.5)
        data = dist.Normal(z.unsqueeze(-1), noise).log_prob(x.unsqueeze(-1))
        guided = dist.Normal(self.slope * x, 0.6).log_prob(z)
        return (prior + data).logsumexp(-1), prior.logsumexp(-1), guided


def draw(pair, seed, particles=1):
    """The draws of the guide after a seed."""
    torch.manual_seed(seed)
    law = dist.Normal(pair.slope * X, 0.6)
    return law.rsample() if particles == 1 else law.expand((particles, len(X))).rsample()


def loss_and_gradients(bound, model, guide, parameters, seed=0):
    torch.manual_seed(seed)
    loss = bound.differentiable_loss(model, guide, X)
    return [loss, *torch.autograd.grad(loss, parameters)]


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("deep", [True, False])
def test_the_two_terms_are_those_of_the_sums(deep, scale, beta):
    """log p(x | z) is log p(x, z) - log p(z), two sums over the component."""
    pair = Pair(deep, scale)
    bound = ELBO(beta=beta)
    bound.structure(pair.model, pair.guide, X)
    torch.manual_seed(0)
    loss, terms = bound.loss_and_terms(pair.model, pair.guide, X)
    joint, prior, guided = pair.terms(X, draw(pair, 0))
    reconstruction = scale * (joint - prior).sum()
    kl = scale * (guided - prior).sum()
    torch.testing.assert_close(terms["reconstruction"], reconstruction.detach())
    torch.testing.assert_close(terms["kl"], kl.detach())
    parameters = list(pair.parameters())
    wanted = beta * kl - reconstruction
    torch.testing.assert_close(loss, wanted)
    for one, other in zip(
        torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(wanted, parameters, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("deep", [True, False])
def test_is_pyros(deep, particles):
    pair = Pair(deep, 1.7)
    parameters = list(pair.parameters())
    theirs = TraceEnum_ELBO(particles, max_plate_nesting=1, vectorize_particles=True)
    ours = ELBO(particles)
    ours.structure(pair.model, pair.guide, X)
    for seed in range(3):
        pairs = zip(
            loss_and_gradients(ours, pair.model, pair.guide, parameters, seed),
            loss_and_gradients(theirs, pair.model, pair.guide, parameters, seed),
            strict=True,
        )
        for one, other in pairs:
            torch.testing.assert_close(one, other)


def test_data_points_have_the_terms_of_the_sums():
    pair = Pair()
    bound = evaluate.elbo(pair.model, pair.guide, X, num_particles=3, seed=0)
    joint, prior, guided = pair.terms(X, draw(pair, 0, 3))
    torch.testing.assert_close(bound.reconstruction, (joint - prior).mean(0).detach())
    torch.testing.assert_close(bound.kl, (guided - prior).mean(0).detach())


# --- both halves enumerate, and nested plates
# ------------------------------------------------------------------------------

RATES = torch.tensor([0.2, 0.9])


def labelled(x):
    """A label that the guide sums out, and components of two rows of each data point that the
    model does.
    """
    with pyro.plate("data", len(x), dim=-2):
        y = pyro.sample("y", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        with pyro.plate("rows", 2, dim=-1):
            k = pyro.sample(
                "k", dist.Bernoulli(RATES[y.long()]), infer={"enumerate": "parallel"}
            )
            z = pyro.sample("z", dist.Normal(2.0 * k - y, 1.0))
            pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)


def labels(slope):
    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            logits = slope * x.mean(-1, keepdim=True)
            y = pyro.sample(
                "y", dist.Bernoulli(logits=logits), infer={"enumerate": "parallel"}
            )
            with pyro.plate("rows", 2, dim=-1):
                pyro.sample("z", dist.Normal(slope * x + y, 0.8))

    return guide


def test_model_and_guide_may_both_enumerate():
    slope = torch.tensor(0.7, requires_grad=True)
    x = torch.tensor([[0.3, -1.0], [2.0, 1.0], [0.1, 0.4]])
    theirs = TraceEnum_ELBO(max_plate_nesting=2)
    values = []
    for bound in (theirs, ELBO(analytic_kl=False)):
        if bound is not theirs:
            bound.structure(labelled, labels(slope), x)
        torch.manual_seed(0)
        loss = bound.differentiable_loss(labelled, labels(slope), x)
        values.append((loss, *torch.autograd.grad(loss, [slope])))
    torch.testing.assert_close(values[1], values[0])
    # The KL of the label in closed form is the sampled one, which is exact: y is summed out.
    torch.manual_seed(0)
    closed = ELBO().loss(labelled, labels(slope), x)
    assert closed == pytest.approx(values[0][0].item(), rel=1e-5)
    weights = evaluate.elbo(
        labelled, labels(slope), x[:, :1].expand(3, 2), num_particles=5, seed=0
    )
    assert weights.elbo.shape == (3,)


@config_enumerate
def hidden_markov(x):
    """A global code for the transitions, components and steps under ``pyro.markov``."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("sequences", len(x)):
        k = pyro.sample("k_0", dist.Categorical(PROBS))
        for t in pyro.markov(range(x.shape[1])):
            logits = torch.eye(3)[k] + 0.1 * k.unsqueeze(-1)
            k = pyro.sample(f"k_{t + 1}", dist.Categorical(logits=logits))
            pyro.sample(f"x_{t}", dist.Normal(MEANS[k] + shift, 1.0), obs=x[:, t])


def shift_of(loc):
    def guide(x):
        pyro.sample("shift", dist.Normal(loc, 0.5))

    return guide


def test_a_hidden_markov_model_against_the_forward_recursion():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    loc = torch.tensor(0.2, requires_grad=True)
    bound = ELBO()
    bound.structure(hidden_markov, shift_of(loc), x)
    torch.manual_seed(1)
    loss = bound.differentiable_loss(hidden_markov, shift_of(loc), x)
    torch.manual_seed(1)
    shift = dist.Normal(loc, 0.5).rsample()
    logits = torch.eye(3) + 0.1 * torch.arange(3).unsqueeze(-1)
    transitions = logits.log_softmax(-1)
    alpha = PROBS.log().expand(4, 3)
    for t in range(6):
        alpha = (alpha.unsqueeze(-1) + transitions).logsumexp(-2)
        alpha = alpha + dist.Normal(MEANS + shift, 1.0).log_prob(x[:, t, None])
    kl = torch.distributions.kl_divergence(dist.Normal(loc, 0.5), dist.Normal(0.0, 1.0))
    wanted = kl - alpha.logsumexp(-1).sum()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(loss, [loc]), torch.autograd.grad(wanted, [loc])
    )


# --- what the sum leaves outside is as without it
# ------------------------------------------------------------------------------


def beside(order):
    """A code w that no component touches, beside one that it does."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(MEANS[k], 1.0))
            w = pyro.sample("w", dist.Normal(0.5 * z, 1.0))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            first = pyro.sample(order[0], dist.Normal(0.5 * x, 0.6))
            pyro.sample(order[1], dist.Normal(0.3 * x + 0.8 * first, 0.4))

    return model, guide


@pytest.mark.parametrize("order", ["zw", "wz"])
def test_a_closed_form_holds_for_any_order_of_the_guide(order):
    """KL(q(w) || p(w | z)) is exact if z comes before w in the guide: z lies inside the sum."""
    model, guide = beside(order)

    def losses(bound):
        bound.structure(model, guide, X)
        torch.manual_seed(0)
        return torch.tensor([bound.loss(model, guide, X) for _ in range(40)])

    closed = losses(ELBO(200))
    sampled = losses(ELBO(200, analytic_kl=False))
    error = ((closed.var() + sampled.var()) / 40).sqrt()
    assert (closed.mean() - sampled.mean()).abs() < 4 * error
    if order == "zw":
        assert closed.std() < sampled.std()


def test_free_bits_need_a_kl_of_each_site():
    pair = Pair()
    with pytest.raises(PairError, match="free_bits=0.1 needs the KL of each latent variable"):
        ELBO(free_bits=0.1).loss(pair.model, pair.guide, X)

    def outside(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            k = pyro.sample("k", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + MEANS[k], 1.0), obs=x)

    found = []
    for free_bits in (0.0, 10.0):
        bound = ELBO(free_bits=free_bits)
        bound.structure(outside, pair.guide, X)
        torch.manual_seed(0)
        found.append(bound.loss_and_terms(outside, pair.guide, X))
    (plain, terms), (free, _) = found
    assert (free - plain).item() == pytest.approx(4 * 10.0 - terms["kl"].item(), rel=1e-5)


def test_sticking_the_landing_has_pyros_gradient_in_the_mean():
    pair = Pair()
    parameters = list(pair.parameters())
    grads = []
    for bound in (ELBO(4000, gradient="stl"), ELBO(4000)):
        runs = [
            torch.cat(
                [
                    grad.reshape(-1)
                    for grad in loss_and_gradients(
                        bound, pair.model, pair.guide, parameters, seed
                    )[1:]
                ]
            )
            for seed in range(20)
        ]
        grads.append(torch.stack(runs))
    error = ((grads[0].var(0) + grads[1].var(0)) / 20).sqrt()
    assert ((grads[0].mean(0) - grads[1].mean(0)).abs() < 4 * error + 1e-6).all()


def code_and_component(x):
    """A binary code that the guide draws, and a component that the model sums out."""
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Bernoulli(0.3))
        k = pyro.sample("k", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(MEANS[k] + b, 1.0), obs=x)


@pytest.mark.parametrize("gradient", ["pathwise", "disarm"])
def test_score_functions_of_the_sum_are_unbiased(gradient):
    slope = torch.tensor(0.4, requires_grad=True)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=slope * x))

    bound = ELBO(2000, gradient=gradient)
    runs = []
    for seed in range(20):
        torch.manual_seed(seed)
        loss = bound.differentiable_loss(code_and_component, guide, X)
        (grad,) = torch.autograd.grad(loss, [slope])
        runs.append(torch.stack([loss.detach(), grad]))
    found = torch.stack(runs)

    b = torch.tensor([0.0, 1.0])
    data = dist.Normal(MEANS + b.unsqueeze(-1), 1.0).log_prob(X[:, None, None])
    summed = (PROBS.log() + data).logsumexp(-1)
    q = dist.Bernoulli(logits=slope * X)
    log_q = q.log_prob(b.unsqueeze(-1)).T
    terms = summed + dist.Bernoulli(0.3).log_prob(b) - log_q
    exact = -(log_q.exp() * terms).sum()
    (grad,) = torch.autograd.grad(exact, [slope])
    error = found.std(0) / 20**0.5
    assert ((found.mean(0) - torch.stack([exact.detach(), grad])).abs() < 4 * error).all()


def test_a_bound_adds_its_own_terms():
    pair = Pair()
    bound = BetaTCVAE(len(X))
    torch.manual_seed(0)
    _, terms = bound.loss_and_terms(pair.model, pair.guide, X)
    assert {"reconstruction", "kl", "total_correlation"} <= set(terms)


# --- trainings
# ------------------------------------------------------------------------------


class Half(torch.nn.Module):
    """One of the programs of a pair, as a module."""

    def __init__(self, pair: Pair, name: str) -> None:
        super().__init__()
        self.pair = pair
        self.name = name

    def forward(self, x):
        return getattr(self.pair, self.name)(x)


def test_a_compiled_step_is_the_eager_one():
    rows = []
    for compiled in (False, True):
        torch.manual_seed(0)
        pair = Pair()
        loss = ELBO(2)
        if compiled:
            loss = Compiled(loss, backend="eager", choose=False)
        history = fit(
            Half(pair, "model"),
            Half(pair, "guide"),
            X.repeat(8),
            loss=loss,
            epochs=4,
            batch_size=8,
            lr=0.05,
            seed=0,
            progress=False,
        )
        rows.append([history["loss"], *(history[name] for name in ("reconstruction", "kl"))])
        assert all(map(math.isfinite, history["loss"]))
    torch.testing.assert_close(torch.tensor(rows[1]), torch.tensor(rows[0]))

"""Sites that a model sums out, in the weights of bounds and evaluations, against closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from tarspyro import evaluate, fit
from tarspyro.infer import (
    CIWAE,
    ELBO,
    IWAE,
    PIWAE,
    TVO,
    FDivergence,
    PairError,
    Renyi,
    ReweightedWakeSleep,
)

PARALLEL = {"enumerate": "parallel"}
PROBS = torch.tensor([0.2, 0.3, 0.5])
LOCS = torch.tensor([-2.0, 0.0, 1.5])


def nothing(*data):
    """A guide without latent variables."""


def mixture(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(PROBS), infer=PARALLEL)
        pyro.sample("x", dist.Normal(LOCS[k], 0.7), obs=x)


def log_mixture(x):
    components = dist.Normal(LOCS, 0.7).log_prob(x.unsqueeze(-1))
    return (components + PROBS.log()).logsumexp(-1)


def test_a_mixture_has_its_exact_log_likelihood():
    x = torch.linspace(-4, 4, 9)
    true = log_mixture(x)
    for guide in (nothing, None):
        found = evaluate.log_likelihood(mixture, guide, x, num_particles=3)
        torch.testing.assert_close(found, true)
        torch.testing.assert_close(evaluate.elbo(mixture, guide, x).elbo, true)
    for bound in (IWAE(4), Renyi(0.5, 4), ELBO(2)):
        assert bound.loss(mixture, nothing, x) == pytest.approx(-true.sum().item(), rel=1e-5)


class Codes(nn.Module):
    """Codes with a mixture as their prior, whose component is summed out or in the family."""

    def __init__(self, summed):
        super().__init__()
        self.summed = summed
        self.locs = nn.Parameter(torch.tensor([[-1.0, 0.5], [0.0, 2.0], [1.0, -1.0]]))
        self.decoder = nn.Linear(2, 4)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            if self.summed:
                k = pyro.sample("k", dist.Categorical(PROBS), infer=PARALLEL)
                prior = dist.Normal(self.locs[k], 0.6).to_event(1)
            else:
                components = dist.Normal(self.locs, 0.6).to_event(1)
                prior = dist.MixtureSameFamily(dist.Categorical(PROBS), components)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(4, 2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.network(x), 0.5).to_event(1))


@pytest.mark.parametrize(
    "bound",
    [
        IWAE(1),
        IWAE(6),
        IWAE(6, gradient="dreg"),
        IWAE(6, chunk_size=2),
        IWAE(6, vectorize_particles=False),
        Renyi(0.3, 6),
        CIWAE(0.5, 6),
        PIWAE(3, 2),
        ReweightedWakeSleep(6),
        TVO(6),
        FDivergence("chi2", 6),
    ],
    ids=lambda bound: f"{type(bound).__name__}, {bound.num_particles}, {bound.gradient}",
)
def test_bounds_and_gradients_are_those_of_the_family_that_sums(bound):
    x = torch.randn(10, 4)
    summed, closed = Codes(True), Codes(False)
    closed.load_state_dict(summed.state_dict())
    guide = Encoder()
    found = []
    for model in (summed, closed):
        guide.zero_grad()
        bound.differentiable_loss(model, guide, x)  # finds the structure
        torch.manual_seed(0)
        loss = bound.differentiable_loss(model, guide, x)
        loss.backward()
        gradients = [p.grad.clone() for p in [*model.parameters(), *guide.parameters()]]
        found.append([loss.detach(), *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_evaluations_are_those_of_the_family_that_sums():
    x = torch.randn(10, 4)
    summed, closed = Codes(True), Codes(False)
    closed.load_state_dict(summed.state_dict())
    guide = Encoder()
    for evaluated in (
        lambda model: evaluate.log_likelihood(model, guide, x, num_particles=20, seed=0),
        lambda model: evaluate.elbo(model, guide, x, num_particles=20, seed=0).elbo,
        lambda model: evaluate.reconstruction(model, guide, x, num_particles=20, seed=0),
        lambda model: evaluate.elbo(model, guide, x, num_particles=20, seed=0).kl,
    ):
        torch.testing.assert_close(evaluated(summed), evaluated(closed))


def test_a_training_with_iwae_reaches_that_of_the_family_that_sums():
    x = torch.randn(64, 4)
    ends = []
    for summed in (True, False):
        torch.manual_seed(0)
        model, guide = Codes(summed), Encoder()
        history = fit(model, guide, x, epochs=3, batch_size=32, loss=IWAE(5), seed=0)
        ends.append(history["loss"][-1])
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


STAY = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.3, 0.4]])


def hidden_markov(x, lengths):
    """Sequences of shape (N, T), with as many steps as their lengths say."""
    with pyro.plate("sequences", len(x)):
        state = torch.tensor(0)
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                state = pyro.sample(
                    f"state_{t}", dist.Categorical(STAY[state]), infer=PARALLEL
                )
                pyro.sample(f"x_{t}", dist.Normal(LOCS[state], 0.7), obs=x[:, t])


def test_a_hidden_markov_model_has_the_likelihood_of_the_forward_algorithm():
    x = torch.randn(5, 6)
    lengths = torch.tensor([6, 1, 3, 6, 4])
    true = []
    for row, length in zip(x, lengths.tolist(), strict=True):
        alpha = STAY[0].log()
        for t in range(length):
            alpha = alpha if t == 0 else (alpha.unsqueeze(-1) + STAY.log()).logsumexp(0)
            alpha = alpha + dist.Normal(LOCS, 0.7).log_prob(row[t])
        true.append(alpha.logsumexp(0))
    true = torch.stack(true)
    found = evaluate.log_likelihood(hidden_markov, None, (x, lengths), num_particles=2)
    torch.testing.assert_close(found, true)
    torch.testing.assert_close(evaluate.elbo(hidden_markov, None, (x, lengths)).elbo, true)
    loss = IWAE(3).loss(hidden_markov, nothing, x, lengths)
    assert loss == pytest.approx(-true.sum().item(), rel=1e-5)


def of_groups(x):
    """Each group of points, a row of x, has a component."""
    with pyro.plate("groups", len(x), dim=-2):
        k = pyro.sample("k", dist.Categorical(PROBS), infer=PARALLEL)
        with pyro.plate("points", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(LOCS[k], 0.7), obs=x)


def test_points_that_share_a_component_are_summed_together():
    x = torch.randn(4, 3)
    of_points = dist.Normal(LOCS, 0.7).log_prob(x.unsqueeze(-1)).sum(1)
    true = (of_points + PROBS.log()).logsumexp(-1)
    torch.testing.assert_close(evaluate.log_likelihood(of_groups, None, x), true)


def of_all(x):
    """All points have the same component."""
    k = pyro.sample("k", dist.Categorical(PROBS), infer=PARALLEL)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(LOCS[k], 0.7), obs=x)


def test_a_component_of_all_data_gives_one_weight_of_all_data():
    x = torch.randn(7)
    of_points = dist.Normal(LOCS, 0.7).log_prob(x.unsqueeze(-1)).sum(0)
    true = (of_points + PROBS.log()).logsumexp(-1).item()
    assert IWAE(3).loss(of_all, nothing, x) == pytest.approx(-true, rel=1e-5)
    with pytest.raises(PairError, match="has no weight for each data point"):
        evaluate.log_likelihood(of_all, None, x)


@pytest.mark.parametrize("seed", range(6))
def test_random_discrete_programs_have_the_likelihood_of_enumeration(seed):
    """Two to four sites in a row, each given some of those before, inside one plate or two."""
    torch.manual_seed(seed)
    count = 2 + seed % 3
    size = 2
    parents = [[j for j in range(i) if torch.rand(()) < 0.6] for i in range(count)]
    tables = [torch.randn([size] * len(p) + [size]) for p in parents]
    seen = torch.randn([size] * count)
    x = torch.randn(3, 2)
    inner = seed % 2 == 1  # the last site has a value for each column

    def value_of(site, values):
        return tables[site][tuple(values[j] for j in parents[site])]

    def model(x):
        with pyro.plate("rows", len(x), dim=-2):
            values = []
            for i in range(count - 1):
                family = dist.Categorical(logits=value_of(i, values))
                values.append(pyro.sample(f"k{i}", family, infer=PARALLEL))
            if not inner:
                family = dist.Categorical(logits=value_of(count - 1, values))
                values.append(pyro.sample("last", family, infer=PARALLEL))
            with pyro.plate("columns", x.shape[1], dim=-1):
                if inner:
                    family = dist.Categorical(logits=value_of(count - 1, values))
                    values.append(pyro.sample("last", family, infer=PARALLEL))
                pyro.sample("x", dist.Normal(seen[tuple(values)], 1.0), obs=x)

    def log_row(row):
        """By going through all values."""
        totals = []
        for outer in torch.cartesian_prod(*[torch.arange(size)] * (count - 1)).reshape(
            -1, count - 1
        ):
            values = list(outer)
            log_p = sum(
                value_of(i, values).log_softmax(-1)[values[i]] for i in range(count - 1)
            )
            last = value_of(count - 1, values).log_softmax(-1)
            columns = torch.stack(
                [
                    last[k] + dist.Normal(seen[(*values, torch.tensor(k))], 1.0).log_prob(row)
                    for k in range(size)
                ]
            )
            if inner:
                totals.append(log_p + columns.logsumexp(0).sum())
            else:
                alone = last.unsqueeze(-1)
                totals.append(
                    log_p + ((columns - alone).sum(-1, keepdim=True) + alone).logsumexp(0)[0]
                )
        return torch.stack(totals).logsumexp(0)

    true = torch.stack([log_row(row) for row in x])
    found = evaluate.log_likelihood(model, None, x, num_particles=2)
    torch.testing.assert_close(found, true, rtol=1e-5, atol=1e-5)


def test_subsamples_and_scales():
    x = torch.linspace(-3, 3, 20)

    def model(batch):
        with (
            pyro.plate("data", 20, subsample=batch),
            poutine.scale(scale=0.5),
        ):
            k = pyro.sample("k", dist.Categorical(PROBS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOCS[k], 0.7), obs=batch)

    loss = IWAE(3).loss(model, nothing, x[:5])
    assert loss == pytest.approx(-0.5 * 4 * log_mixture(x[:5]).sum().item(), rel=1e-5)


def test_sites_of_different_scales_are_not_summed_together():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(PROBS), infer=PARALLEL)
            with poutine.scale(scale=2.0):
                pyro.sample("x", dist.Normal(LOCS[k], 0.7), obs=x)

    with pytest.raises(
        PairError, match=r"sums \['k'\] out, and the sites .* different scales"
    ):
        IWAE(3).loss(model, nothing, torch.randn(4))


def test_what_needs_values_of_the_sites_says_so():
    x = torch.tensor([0.3, -1.0])
    with pytest.raises(
        PairError, match="enumerates .*: draw these sites in the guide, or take"
    ):
        evaluate.impute(mixture, None, x, torch.tensor([False, True]))


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (dist.Normal(0.0, 1.0), {}, "values of Normal cannot be listed: draw it in the guide"),
        (dist.Poisson(2.0), {}, "values of Poisson cannot be listed"),
        (
            dist.Bernoulli(torch.full((2,), 0.5)).to_event(1),
            {},
            r"values of Bernoulli with the event shape \(2,\) cannot be listed",
        ),
        (
            dist.Categorical(PROBS),
            {"num_samples": 4},
            "should enumerate: leave num_samples out",
        ),
    ],
    ids=["real numbers", "all counts", "vectors", "some draws"],
)
@pytest.mark.parametrize("bound", [ELBO(), IWAE(3)], ids=["ELBO", "IWAE"])
def test_values_that_cannot_be_listed_are_refused(family, options, message, bound):
    """Among them tensor Monte Carlo, whose draws are no sum over all values."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", family, infer={**PARALLEL, **options})
            k = k.sum(-1) if family.event_shape else k
            pyro.sample("x", dist.Normal(k.float(), 1.0), obs=x)

    with pytest.raises(PairError, match=message):
        bound.loss(model, nothing, torch.randn(3))

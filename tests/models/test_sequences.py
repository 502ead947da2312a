"""VRNN and deep Markov models, against a Kalman filter."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import (
    Conditional,
    Run,
    distributions,
    evaluate,
    fit,
    guides,
    load_run,
    models,
    sequential,
)
from tarspyro.data import Sequences
from tarspyro.distributions import Prior, default_prior
from tarspyro.infer import ELBO, FIVO, IWAE, PairError, Renyi, check_pair
from tarspyro.nn import MLP, Backward, Recurrence
from tarspyro.sequences import steps_of

from ..infer.test_compiled import assert_same_step
from ..programs import as_made, assert_within

BOUNDS = {
    "ELBO": ELBO,
    "ELBO, 3 particles": lambda: ELBO(3),
    "ELBO, sampled": lambda: ELBO(analytic_kl=False),
    "IWAE": lambda: IWAE(3),
    "IWAE, dreg": lambda: IWAE(3, gradient="dreg"),
    "Renyi": lambda: Renyi(0.5, 3),
    "FIVO": lambda: FIVO(3),
    "FIVO, systematic": lambda: FIVO(3, 1.0, "systematic"),
}
FAMILIES = {
    "Normal": dist.Normal,
    "Gamma": distributions.Gamma,
    "Dirichlet": distributions.Dirichlet,
    "GumbelSoftmax": distributions.GumbelSoftmax,
}
CELLS = {"GRU": nn.GRUCell, "LSTM": nn.LSTMCell, "RNN": nn.RNNCell}
each_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
each_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Last(nn.Module):
    """A cell whose state is the draw, with which a VRNN is a state space model."""

    input_size, hidden_size = 3, 1

    def forward(self, inputs, state):
        return inputs[:, 2:]


class Kalman:
    """z_0 ~ N(0, s_0^2), z_t ~ N(a z_{t-1}, s^2), x_t ~ N(z_t c, r^2 I_2), with a biased
    proposal.
    """

    def __init__(self, kind, steps=6, num=3, seed=0):
        self.a, self.s, self.s_0, self.r = 0.9, 0.8, 1.1, 0.7
        self.c = torch.tensor([1.0, -0.6])
        likelihood = Conditional(
            dist.Normal, MLP([1] if kind == "DMM" else [1, 1], []), 2, scale=self.r
        )
        self.set(
            likelihood,
            torch.stack([self.c, torch.zeros(2)], 1)[:, : 1 if kind == "DMM" else 2],
        )
        # As good as optimal, but for a bias and a scale.
        gain = 0.35 * self.c
        posterior = Conditional(dist.Normal, MLP([2, 1], []), 1, scale=0.55)
        self.set(posterior, torch.cat([gain, torch.tensor([0.6])]), 0.1)
        if kind == "DMM":
            transition, first = (
                Conditional(dist.Normal, MLP(1, []), 1, scale=self.s),
                posterior,
            )
            self.set(transition, self.a)
            prior = Prior(dist.Normal, 1, loc=0.0, scale=self.s_0)
            self.p = models.DeepMarkovModel(prior, transition, likelihood)
            self.q = guides.DeepMarkovModel(lambda x: first(x, torch.zeros(1)), posterior)
        else:
            self.s_0 = self.s
            prior = Conditional(dist.Normal, MLP(1, []), 1, scale=self.s)
            self.set(prior, self.a)
            cell = Recurrence(Last())
            self.p, self.q = models.VRNN(cell, prior, likelihood), guides.VRNN(cell, posterior)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            self.x = self.p(batch_size=num, length=steps)

    @staticmethod
    def set(conditional, weight, bias=0.0):
        with torch.no_grad():
            conditional.heads["loc"].weight.copy_(
                torch.as_tensor(weight).reshape(conditional.heads["loc"].weight.shape)
            )
            conditional.heads["loc"].bias.fill_(bias)

    def filter(self, x):
        """The log-likelihood of each sequence, and the means of z_t given x_{0:t}."""
        mean, variance = torch.zeros(len(x)), torch.full((), self.s_0**2)
        total, means = torch.zeros(len(x)), []
        for t in range(x.shape[1]):
            covariance = variance * torch.outer(self.c, self.c) + self.r**2 * torch.eye(2)
            total = total + dist.MultivariateNormal(
                mean.unsqueeze(1) * self.c, covariance
            ).log_prob(x[:, t])
            gain = variance * self.c @ covariance.inverse()
            mean, variance = (
                mean + (x[:, t] - mean.unsqueeze(1) * self.c) @ gain,
                variance * (1 - gain @ self.c),
            )
            means.append(mean)
            mean, variance = self.a * mean, self.a**2 * variance + self.s**2
        return total, torch.stack(means, 1)

    def parameters(self):
        return [*self.p.parameters(), *self.q.parameters()]


either = pytest.mark.parametrize("kind", ["VRNN", "DMM"])


# --- what the bounds compute


@either
def test_importance_sampling_meets_the_kalman_filter(double, kind):
    toy = Kalman(kind, steps=3)
    exact, _ = toy.filter(toy.x)
    found = evaluate.log_likelihood(
        toy.p, toy.q, toy.x, num_particles=10_000, errors=True, seed=0
    )
    assert ((found.log_likelihood - exact).abs() < 4 * found.standard_error).all()
    assert found.standard_error.max() < 0.05


@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@either
def test_the_particle_filter_is_unbiased(double, kind, threshold, resampling):
    """The mean of the estimates of p(x), not of log p(x), is exact for any number of
    particles.
    """
    toy = Kalman(kind)
    exact, _ = toy.filter(toy.x[:1])
    torch.manual_seed(1)
    many = toy.x[:1].expand(4000, -1, -1)
    found = evaluate.particle_filter(
        toy.p, toy.q, many, num_particles=4, threshold=threshold, resampling=resampling
    ).log_likelihood
    assert_within((found - exact).exp(), 1.0, "p(x)")


@either
def test_fivo_is_a_bound_that_grows_with_particles(double, kind):
    toy = Kalman(kind, steps=8, num=1)
    exact = toy.filter(toy.x)[0]
    many = toy.x.expand(1600, -1, -1)
    torch.manual_seed(0)
    gaps = {}
    for count in (1, 4, 32):
        found = (
            evaluate.particle_filter(toy.p, toy.q, many, num_particles=count).log_likelihood
            - exact
        )
        gaps[count] = found.mean(), found.std() / len(found) ** 0.5
        assert found.mean() < 4 * gaps[count][1]
    for few, more in ((1, 4), (4, 32)):
        assert (
            gaps[more][0] - gaps[few][0] > 4 * (gaps[more][1] ** 2 + gaps[few][1] ** 2) ** 0.5
        )
    assert gaps[32][0] > gaps[4][0] / 4  # about an eighth
    # whole sequences, weighted with the same number of particles, are worse off
    whole = evaluate.log_likelihood(toy.p, toy.q, many, num_particles=32) - exact
    assert (
        gaps[32][0] - whole.mean() > 4 * (gaps[32][1] ** 2 + whole.var() / len(whole)) ** 0.5
    )


@either
def test_one_particle_is_the_elbo_and_never_resampling_the_iwae(double, kind):
    toy = Kalman(kind)
    lengths = torch.tensor([6, 2, 4])
    for bound, other in (
        (FIVO(1), ELBO(analytic_kl=False)),
        (FIVO(5, threshold=0.0), IWAE(5)),
    ):
        values, gradients = [], []
        for one in (bound, other):
            torch.manual_seed(0)
            loss = one.differentiable_loss(toy.p, toy.q, toy.x, lengths)
            values.append(loss.detach())
            gradients.append(
                torch.cat([g.flatten() for g in torch.autograd.grad(loss, toy.parameters())])
            )
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*gradients)


def test_fivo_by_hand(double):
    """Value and gradient of the algorithm by hand for the DMM, with the same noise and with
    resampling.
    """
    toy = Kalman("DMM", steps=5, num=4)
    count, num = 4, len(toy.x)

    def by_hand(x):
        transition, likelihood = toy.p.transition, toy.p.likelihood
        total, log_w, z, resampled = torch.zeros(num), torch.zeros(count, num), None, 0
        for t in range(x.shape[1]):
            q = (
                toy.q.first(x[:, t]).expand((count, num))
                if t == 0
                else toy.q.posterior(x[:, t], z)
            )
            before = toy.p.prior() if t == 0 else transition(z)
            z = q.rsample()
            log_w = (
                log_w + before.log_prob(z) + likelihood(z).log_prob(x[:, t]) - q.log_prob(z)
            )
            if t == x.shape[1] - 1:
                break
            share = log_w.detach().softmax(0)
            places = torch.rand(num, count)
            rows = []
            for n in range(num):
                if 1 / (share[:, n] ** 2).sum() >= 0.8 * count:
                    rows.append((total[n], log_w[:, n], z[:, n]))
                    continue
                resampled += 1
                ancestors = [int((share[:, n].cumsum(0) < place).sum()) for place in places[n]]
                mean = log_w[:, n].logsumexp(0) - torch.tensor(float(count)).log()
                rows.append((total[n] + mean, torch.zeros(count), z[ancestors, n]))
            total, log_w, z = (
                torch.stack(part, -1 if i < 2 else 1)
                for i, part in enumerate(zip(*rows, strict=True))
            )
        assert 0 < resampled < num * (x.shape[1] - 1)
        return -(total + log_w.logsumexp(0) - torch.tensor(float(count)).log()).sum()

    results = []
    bound = FIVO(count, threshold=0.8)
    for function in (
        lambda: by_hand(toy.x),
        lambda: bound.differentiable_loss(toy.p, toy.q, toy.x),
    ):
        bound.structure(toy.p, toy.q, toy.x)
        torch.manual_seed(3)
        loss = function()
        results.append([loss.detach(), *torch.autograd.grad(loss, toy.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@either
def test_filtering_means_are_the_kalman_filter_s(double, kind):
    toy = Kalman(kind, steps=6, num=2)
    log_p, means = toy.filter(toy.x)
    runs = evaluate.particle_filter(
        toy.p, toy.q, toy.x.repeat(20, 1, 1), num_particles=400, seed=0
    )
    found = runs.mean.reshape(20, 2, 6)
    error = found.std(0) / len(found) ** 0.5
    # a mean of weighted draws is biased by about 1 / K
    assert ((found.mean(0) - means).abs() < 4 * error + 1 / 400).all() and error.max() < 0.02
    assert ((runs.log_likelihood.reshape(20, 2) - log_p).abs() < 1.0).all()
    sizes = runs.effective_sample_size
    assert (sizes >= 1).all() and (sizes <= 400 + 1e-9).all() and sizes.mean() > 100


def test_scores_of_discrete_draws_make_the_gradient_of_a_markov_chain():
    """With one particle, and with several without resampling, the gradient is that of the
    bound by enumeration.
    """
    torch.manual_seed(0)
    x = torch.tensor([[0.3, -1.0]])
    start, move = nn.Parameter(torch.tensor(0.4)), nn.Parameter(torch.tensor(-0.7))

    def chain(x, observed, logit, slope):
        data, z = pyro.plate("data", len(x)), torch.zeros(len(x))
        for t in range(x.shape[1]):
            z = yield z
            with data:
                z = pyro.sample(f"z_{t}", dist.Bernoulli(logits=logit + slope * z))
                if observed:
                    pyro.sample(f"x_{t}", dist.Normal(2 * z - 1, 1.0), obs=x[:, t])

    @sequential
    def model(x):
        return (yield from chain(x, True, 0.2, 0.5))

    @sequential
    def guide(x):
        return (yield from chain(x, False, start, move))

    def joint(z, logit, slope):
        first, second = (
            dist.Bernoulli(logits=logit),
            dist.Bernoulli(logits=logit + slope * z[0]),
        )
        return first.log_prob(z[0]) + second.log_prob(z[1])

    paths = torch.cartesian_prod(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    log_q = torch.stack([joint(z, start, move) for z in paths])
    log_p = torch.stack([joint(z, torch.tensor(0.2), torch.tensor(0.5)) for z in paths])
    log_p = log_p + dist.Normal(2 * paths - 1, 1.0).log_prob(x).sum(1)
    log_w = log_p - log_q
    pairs = (
        torch.logsumexp(torch.stack(torch.broadcast_tensors(log_w[:, None], log_w[None])), 0)
        - torch.tensor(2.0).log()
    )
    exact = {
        1: (log_q.exp() * log_w).sum(),
        2: ((log_q[:, None] + log_q[None]).exp() * pairs).sum(),
    }
    many = x.expand(4000, -1)
    for count, value in exact.items():
        truth = torch.stack(torch.autograd.grad(value, (start, move), retain_graph=True))
        draws = []
        for _ in range(30):
            loss = FIVO(count, threshold=0.0).differentiable_loss(model, guide, many)
            draws.append(-torch.stack(torch.autograd.grad(loss, (start, move))) / len(many))
        assert_within(torch.stack(draws), truth, f"the gradient with {count} particles")


# --- masks and lengths


def pair(family=dist.Normal, cell=nn.GRUCell, kind="VRNN", latent=2, hidden=4):
    """A small pair over sequences of 8 binary numbers."""
    net = lambda given: MLP(given, [6], activation=nn.Tanh)  # noqa: E731
    if kind == "DMM":
        p = models.DeepMarkovModel(
            default_prior(family, latent),
            Conditional(family, net(latent), latent),
            Conditional(dist.Bernoulli, net(latent), 8),
        )
        first, posterior = (
            Conditional(family, net(given), latent) for given in ([4], [4, latent])
        )
        return p, guides.DeepMarkovModel(first, posterior, Backward(nn.GRU(8, 4)))
    recurrence = Recurrence(cell(8 + latent, hidden), learn_initial=True)
    prior = Conditional(family, net(hidden), latent)
    p = models.VRNN(recurrence, prior, Conditional(dist.Bernoulli, net([latent, hidden]), 8))
    return p, guides.VRNN(recurrence, Conditional(family, net([8, hidden]), latent))


def ragged(*lengths):
    return Sequences.padded([torch.rand(length, 8).round() for length in lengths])


@pytest.mark.parametrize("count", [1, 3])
@either
def test_a_padded_batch_is_one_sequence_at_a_time(double, kind, count):
    """Given the draws, each weight is that of the sequence by itself; the padding has no
    effect.
    """
    torch.manual_seed(0)
    p, q = pair(kind=kind)
    data = ragged(5, 1, 3)
    padded = data.x + 7.0 * (torch.arange(5) >= data.lengths.unsqueeze(1)).unsqueeze(-1)
    drawn = pyro.poutine.trace(pyro.plate("particles", count, dim=-2)(q)).get_trace(
        data.x, data.lengths
    )
    values = {
        name: node["value"] for name, node in drawn.nodes.items() if name.startswith("z_")
    }

    def weights(x, lengths, draws):
        halves = [pyro.condition(half, draws) for half in (p, q)]
        with pyro.validation_enabled(False):  # Bernoulli draws of 8
            traces = [pyro.poutine.trace(half).get_trace(x, lengths) for half in halves]
        for trace in traces:
            trace.compute_log_prob()
        logs = [
            {
                name: node["log_prob"]
                for name, node in trace.nodes.items()
                if name[:2] in ("z_", "x_")
            }
            for trace in traces
        ]
        return sum(logs[0].values()) - sum(logs[1].values())

    together = weights(data.x, data.lengths, values)
    torch.testing.assert_close(weights(padded, data.lengths, values), together, rtol=0, atol=0)
    for row, length in enumerate(data.lengths.tolist()):
        alone = {f"z_{t}": values[f"z_{t}"][:, row : row + 1] for t in range(length)}
        one = weights(data.x[row : row + 1, :length], None, alone)
        torch.testing.assert_close(one[:, 0], together[:, row], rtol=1e-12, atol=1e-12)


def test_the_particle_filter_ends_with_the_sequence(double):
    """With lengths, the estimate is that of p(x) of the steps before the padding."""
    toy = Kalman("VRNN", steps=5, num=1)
    lengths = torch.tensor([5, 1, 3]).repeat(1500)
    x = toy.x.expand(4500, -1, -1) + 9.0 * (torch.arange(5) >= lengths.unsqueeze(1)).unsqueeze(
        -1
    )
    found = evaluate.particle_filter(
        toy.p, toy.q, (x, lengths), num_particles=4, threshold=1.0, seed=0
    ).log_likelihood
    exact = torch.stack([toy.filter(toy.x[:, :length])[0][0] for length in (5, 1, 3)])
    assert_within((found.reshape(1500, 3) - exact).exp(), torch.ones(3))


@pytest.mark.parametrize("lengths", [None, (3, 2)])
def test_the_compiled_filter_is_unbiased_too(double, lengths):
    """Its means are those of the filter as it is written, with masks of padding too."""
    toy = Kalman("VRNN", steps=3)
    many = toy.x[:1].expand(4000, -1, -1)
    exact = torch.cat([toy.filter(toy.x[:1, :length])[0] for length in lengths or (3, 3)])
    data = many if lengths is None else (many, torch.tensor(lengths).repeat(2000))
    calls = []
    toy.p.likelihood.register_forward_pre_hook(lambda *_: calls.append(None))
    options = {"num_particles": 40, "threshold": 0.7, "seed": 0}

    eager = evaluate.particle_filter(toy.p, toy.q, data, **options)
    calls_of_eager = len(calls)
    found = evaluate.particle_filter(toy.p, toy.q, data, compile=True, **options)
    assert len(calls) - calls_of_eager < calls_of_eager, "a compiled filter runs no program"
    weights = (found.log_likelihood.reshape(2000, 2) - exact).exp()
    assert_within(weights, torch.ones(2), "p(x)")
    difference = (found.mean - eager.mean).reshape(2000, 2, 3, -1)[:, :, :2]
    error = (2 * eager.mean.reshape(2000, 2, 3, -1)[:, :, :2].var(0) / 2000).sqrt()
    assert (difference.mean(0).abs() < 4 * error).all()
    assert ((found.effective_sample_size > 1) & (found.effective_sample_size <= 40)).all()


def test_kl_in_closed_form_under_masks(double):
    """Equal masks in two tensors keep the KL in closed form; other masks add E[(m_q - m_p) log
    q].
    """
    q = dist.Normal(torch.tensor([0.3, -0.5, 1.0]), 0.7)
    exact = torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0))

    def half(d, mask, observed):
        def run(x):
            with (
                pyro.plate("copies", len(x), dim=-2),
                pyro.plate("data", 3),
                pyro.poutine.mask(mask=mask.clone()),
            ):
                z = pyro.sample("z", d)
                if observed:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return run

    x, seen = torch.zeros(4000, 3), torch.tensor([True, False, True])
    model = half(dist.Normal(0.0, 1.0), seen, True)

    def terms(guide):
        structure = ELBO().structure(model, guide, x)
        return ELBO().terms_per_point(
            model, guide, (x,), num_particles=1, structure=structure
        )[1]

    torch.testing.assert_close(terms(half(q, seen, False)), (seen * exact).expand(4000, 3))
    other = torch.tensor([True, True, False])
    with pytest.warns(UserWarning, match="mask 'z' in different places"):
        _, named = ELBO().loss_and_terms(model, half(q, other, False), x)
    # -E_q[log q] and -E_q[log p] alone, where one of the masks leaves the other out
    kl = exact[0] - q.entropy()[1] + exact[2] + q.entropy()[2]
    # The variance of log q is 1/2, that of log p of N(1, 0.7) is 0.61.
    assert abs(named["kl"] / 4000 - kl) < 4 * ((0.5 + 0.61) / 4000) ** 0.5
    loss, named = ELBO(free_bits=0.5).loss_and_terms(model, half(q, seen, False), x)
    assert loss + named["reconstruction"] >= named["kl"] and named["kl"] == pytest.approx(
        4000 * (seen * exact).sum().item()
    )


@each_cell
def test_the_elbo_of_sequences_has_its_kl_in_closed_form(double, cell):
    """The KL of one step has no noise, also with lengths."""
    p, q = pair(cell=cell)
    data = ragged(1, 1)
    kls = {
        ELBO().loss_and_terms(p, q, data.x, lengths)[1]["kl"].item()
        for lengths in (None, data.lengths)
        for _ in range(2)
    }
    assert max(kls) - min(kls) < 1e-12


def test_features_from_behind_do_not_see_the_padding(double):
    for rnn in (nn.GRU(8, 4), nn.LSTM(8, 4, batch_first=True), nn.RNN(8, 4, num_layers=2)):
        backward, data = Backward(rnn), ragged(5, 2, 3)
        found = backward(data.x, data.lengths)
        for row, length in enumerate(data.lengths.tolist()):
            own = data.x[row, :length].flip(0).unsqueeze(0 if rnn.batch_first else 1)
            exact = rnn(own)[0].squeeze(0 if rnn.batch_first else 1).flip(0)
            torch.testing.assert_close(found[row, :length], exact)
        torch.testing.assert_close(backward(data.x)[0], found[0])
    with pytest.raises(
        TypeError, match="rnn must be a torch.nn.GRU, LSTM or RNN of one direction, got GRU"
    ):
        Backward(nn.GRU(8, 4, bidirectional=True))


@each_cell
def test_recurrences_are_their_cells(double, cell):
    """With any leading dimensions that broadcast."""
    made = cell(5, 4)
    recurrence = Recurrence(made)
    x, z = torch.randn(3, 2), torch.randn(2, 3, 3)
    state = recurrence.initial(3)
    for _ in range(2):
        state = recurrence(state, x, z)
    for k in range(2):
        expected = None
        for _ in range(2):
            expected = made(torch.cat([x, z[k]], 1), expected)
        for one, other in zip(
            *((part,) if torch.is_tensor(part) else part for part in (state, expected)),
            strict=True,
        ):
            torch.testing.assert_close(one[k], other)
    h = recurrence.hidden(state)
    assert h.shape == (2, 3, 4) and h is (state[0] if cell is nn.LSTMCell else state)


def test_recurrences_have_trunks_and_starts():
    trunk = MLP([(2, 3), 4], [5])
    recurrence = Recurrence(nn.LSTMCell(5, 6), trunk, learn_initial=True)
    assert recurrence.start.requires_grad and recurrence(
        recurrence.initial(2), torch.zeros(2, 2, 3), torch.zeros(7, 2, 4)
    )[0].shape == (7, 2, 6)
    assert repr(recurrence) == "LSTMCell(5, 6) on MLP(10 -> 5, ReLU), initial state learned"
    assert not list(Recurrence(nn.GRUCell(5, 6)).state_dict().keys() & {"start"})
    with pytest.raises(
        TypeError, match="cell must be a module with input_size and hidden_size"
    ):
        Recurrence(nn.Linear(5, 6))


# --- any family, any bound, any cell


@each_bound
@each_family
def test_trains_and_generates(bound, family):
    torch.manual_seed(0)
    p, q = pair(family)
    data = Sequences.padded(
        [(torch.rand(length, 8) < 0.1).float() for length in (4, 2, 3) * 10]
    )
    check_pair(p, q, data.x, data.lengths)
    if bound is BOUNDS["IWAE, dreg"] and family in (
        distributions.Gamma,
        distributions.Dirichlet,
    ):
        with pytest.raises(PairError, match="reparameterized"):
            fit(p, q, data, loss=bound(), epochs=1, progress=False)
        return
    history = fit(
        *as_made(p, q),
        data,
        loss=bound(),
        epochs=4,
        lr=3e-2,
        batch_size=10,
        seed=0,
        progress=False,
    )
    assert history["loss"][-1] < history["loss"][0] - 1
    scores = evaluate.log_likelihood(p, q, data[:10], num_particles=5)
    assert scores.shape == (10,) and scores.isfinite().all()
    assert p(batch_size=3, length=5).shape == (3, 5, 8)


@each_bound
@either
def test_recorded_steps_are_the_eager_ones(bound, kind):
    torch.manual_seed(0)
    data = ragged(2, 1)
    assert_same_step(bound(), *pair(kind=kind), data.x, data.lengths)


@pytest.mark.parametrize(
    ("family", "cell"),
    [
        (distributions.Gamma, nn.LSTMCell),
        (distributions.Dirichlet, nn.RNNCell),
        (distributions.GumbelSoftmax, nn.LSTMCell),
    ],
)
def test_recorded_steps_of_other_families_and_cells(family, cell):
    torch.manual_seed(0)
    assert_same_step(FIVO(3), *pair(family, cell), ragged(2, 2).x)


def test_recorded_steps_run_the_recurrence_once():
    """Both halves compute the state of a module that the library does not know; the recording
    computes it once, also for resampled states.
    """
    from tarspyro.infer.compilation.recording import record, record_as_it_stands
    from tarspyro.scopes import local_parameters

    class Own(Recurrence):
        pass

    p, q = pair()
    p.cell.__class__ = Own
    x = ragged(3, 3).x
    for bound in (ELBO(), FIVO(3)):
        with local_parameters():
            bound.structure(p, q, x)
            step = lambda x, bound=bound: bound.loss_and_terms(p, q, x)  # noqa: E731
            plain, merged = (
                make(step, (x,), **how).graph
                for make, how in ((record_as_it_stands, {"buffers": []}), (record, {}))
            )
        assert len(merged.graph.nodes) < 0.9 * len(plain.graph.nodes)


@either
def test_run_folders_restore_the_pair(tmp_path, kind):
    p, q = pair(kind=kind, cell=nn.LSTMCell)
    data = ragged(3, 2, 3, 1)
    fit(p, q, data, loss=FIVO(2), epochs=1, folder=tmp_path / "run", seed=0, progress=False)
    run = load_run(tmp_path / "run")
    assert repr(run.model) == repr(p) and repr(run.guide) == repr(q)
    scores = [
        evaluate.log_likelihood(*halves, data, num_particles=5, seed=0)
        for halves in ((p, q), run[:2])
    ]
    assert torch.equal(*scores)


def test_batches_of_similar_lengths_train_and_resume_exactly(tmp_path):
    data = ragged(*[1 + n % 5 for n in range(12)])

    def train(folder, epochs, **how):
        torch.manual_seed(0)
        p, q = pair()
        run = Run(folder, **how)
        fit(p, q, data.batches(4), epochs=epochs, folder=run, seed=1, progress=False)
        return torch.cat([parameter.detach().flatten() for parameter in p.parameters()])

    train(tmp_path / "a", 1)
    assert torch.equal(train(tmp_path / "a", 3, resume=True), train(tmp_path / "b", 3))


def test_svi_trains_sequences():
    p, q = pair()
    data = ragged(3, 2)
    svi = pyro.infer.SVI(p, q, pyro.optim.Adam({"lr": 0.03}), FIVO(3))
    losses = [svi.step(data.x, data.lengths) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])


# --- generation and continuation


@either
def test_generation_has_the_model_s_moments(double, kind):
    toy = Kalman(kind, steps=3)
    with torch.no_grad():
        x = toy.p(batch_size=20_000, length=3)
    variance, moments = toy.s_0**2, []
    for _ in range(3):
        moments.append(variance)
        variance = toy.a**2 * variance + toy.s**2
    assert_within(x, torch.zeros(3, 2))
    assert_within(x**2, torch.tensor(moments).unsqueeze(1) * toy.c**2 + toy.r**2)
    assert_within(
        x[:, 0, 0] * x[:, 2, 0], toy.a**2 * moments[0] * toy.c[0] ** 2
    )  # one state runs through


@either
def test_continuations_equal_the_kalman_filter(double, kind):
    toy = Kalman(kind, steps=5, num=2)
    found = evaluate.continuations(
        toy.p, toy.q, toy.x, 7, num_samples=2000, num_particles=2000, seed=0
    )
    assert found.shape == (2000, 2, 2, 2)
    mean = toy.filter(toy.x)[1][:, -1]
    predicted = torch.stack([toy.a * mean, toy.a**2 * mean], 1).unsqueeze(-1) * toy.c
    off = (found.mean(0) - predicted).abs() / (found.std(0) / 2000**0.5)
    assert off.max() < 6  # particles that share an ancestor are worth less than their number
    array = evaluate.continuations(toy.p, toy.q, toy.x.numpy(), 6, num_samples=3)
    assert array.shape == (3, 2, 1, 2)
    for message, how in {
        "length must be above 5, the steps that are known, got 5": {"length": 5},
        "num_particles must be at least num_samples, 3, got 2": {
            "length": 6,
            "num_samples": 3,
            "num_particles": 2,
        },
    }.items():
        with pytest.raises(ValueError, match=message):
            evaluate.continuations(toy.p, toy.q, toy.x, **how)
    with pytest.raises(ValueError, match="leave out lengths"):
        evaluate.continuations(toy.p, toy.q, (toy.x, torch.tensor([5, 5])), 6)


def test_continuations_follow_their_controls():
    """Of a walk that is known without noise, x_t = z_t = z_{t-1} + u_t + N(0, 1)."""

    @sequential
    def model(x, controls, length=None):
        data = pyro.plate("data", len(x))
        z = torch.zeros(len(x))
        for t in range(x.shape[1] if length is None else length):
            z = yield z
            with data:
                z = pyro.sample(f"z_{t}", dist.Normal(z + controls[:, t], 1.0))
                known = x[:, t] if t < x.shape[1] else None
                pyro.sample(f"x_{t}", dist.Normal(z, 0.01), obs=known)

    @sequential
    def guide(x, controls):
        data = pyro.plate("data", len(x))
        z = torch.zeros(len(x))
        for t in range(x.shape[1]):
            z = yield z
            with data:
                z = pyro.sample(f"z_{t}", dist.Normal(x[:, t], 0.01))

    controls = torch.tensor([[0.0, 0.0, 5.0, 10.0], [0.0, 0.0, -1.0, -2.0]])
    parts = {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "controls": controls}
    settings = {"num_samples": 1000, "num_particles": 1000, "seed": 0}
    found = evaluate.continuations(model, guide, parts, 4, **settings)
    expected = torch.tensor([[7.0, 17.0], [3.0, 1.0]])
    off = (found.mean(0) - expected).abs() / (found.std(0) / 1000**0.5)
    assert found.shape == (1000, 2, 2) and off.max() < 5
    assert (found.var(0) - torch.tensor([1.0, 2.0])).abs().max() < 0.5


@either
def test_the_model_continues_a_given_sequence(kind):
    p, q = pair(kind=kind)
    x = ragged(3, 3).x
    whole = p(x, length=5)
    assert whole.shape == (2, 5, 8) and torch.equal(whole[:, :3], x) and torch.equal(p(x), x)
    assert torch.equal(p(x, length=2), x[:, :2])
    with pyro.plate("particles", 4, dim=-2):
        assert p(x, length=5).shape == (4, 2, 5, 8)
    with pytest.raises(ValueError, match="length must be given to generate without x"):
        p(batch_size=3)


# --- what is refused


def test_lengths_are_checked():
    p, q = pair()
    x = ragged(3, 3).x
    for lengths, message in {
        (3,): r"lengths must be integers of shape \(2,\), .* got torch.int64 of shape \(1,\)",
        (3.0, 2.0): "got torch.float32",
        (3, 0): "lengths must be at least 1, got 0",
        (3, 5): "lengths must be at most 3, the number of steps, got 5",
    }.items():
        with pytest.raises(ValueError, match=message):
            q(x, torch.tensor(lengths))
        with pytest.raises(ValueError, match=message):
            p(x, torch.tensor(lengths))


def test_sequences_without_steps_are_refused():
    p, _ = pair()
    with pytest.raises(ValueError, match=r"x must have at least one step, in dimension 1 of"):
        p(torch.zeros(2, 0, 8))
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        p(batch_size=2, length=0)


def test_programs_that_do_not_run_step_by_step():
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [4]), 8))
    q = guides.VAE(Conditional(dist.Normal, MLP(8, [4]), 2))
    with pytest.raises(
        PairError, match="models.VAE does not run step by step: decorate its forward"
    ):
        FIVO().loss(p, q, torch.zeros(2, 8))
    p, q = pair()
    assert steps_of(p) and not steps_of(pyro.condition(p, {"z_0": torch.zeros(2, 2)}))

    @sequential
    def short(x):
        return (yield from q.forward.steps(q, x[:, :-1]))

    with pytest.raises(PairError, match=r"only the model samples \['z_2'\]"):
        FIVO().loss(p, short, ragged(3, 3).x)

    @sequential
    def long(x):
        yield from q.forward.steps(q, x)
        yield

    with pytest.raises(PairError, match="do not yield the same number of times"):
        FIVO().loss(p, long, ragged(3, 3).x)

    def walk(x, state, observed):
        data, z = pyro.plate("data", len(x)), torch.zeros(len(x))
        for t in range(x.shape[1]):
            if state == "inside":
                with data:
                    z = yield z
            else:
                z = yield z
            with data:
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                if observed:
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])
            z = torch.zeros(len(x)) if state == "forgets" else z

    for state, message in {
        "inside": "yields inside of a plate",
        "forgets": r"yields a state of shape \(2,\), which has no row for each of 4 particles",
    }.items():
        halves = [
            sequential(lambda x, s=state, o=observed: walk(x, s, o))
            for observed in (True, False)
        ]
        bound = FIVO(4, max_plate_nesting=1)
        with pytest.raises(PairError, match=message):
            bound.loss(*halves, torch.zeros(2, 3))
    for how, message in (
        ({"threshold": 1.5}, "threshold must be from 0 to 1, got 1.5"),
        ({"resampling": "no"}, "got 'no'"),
    ):
        with pytest.raises(ValueError, match=message):
            FIVO(**how)


@pytest.mark.parametrize("particles", [3, 5])  # as many as there are rows, and others
def test_a_filter_of_programs_that_take_no_plate_of_particles_is_refused(particles):
    def walk(x, observed):
        data, z = pyro.plate("data", len(x)), torch.zeros(len(x))
        for t in range(x.shape[1]):
            z = yield z
            with data:
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                if observed:
                    rows = torch.stack([z[i] for i in range(len(x))])  # particles, in a plate
                    pyro.sample(f"x_{t}", dist.Normal(rows, 1.0), obs=x[:, t])

    model = sequential(lambda x: walk(x, True))
    guide = sequential(lambda x: walk(x, False))
    x = torch.tensor([[0.5, 1.0], [-1.0, 2.0], [0.3, 0.0]])
    message = "cannot run in a plate of particles"
    with pytest.raises(PairError, match=message):
        FIVO(particles).loss(model, guide, x)
    with pytest.raises(PairError, match=message):
        evaluate.particle_filter(model, guide, x, num_particles=particles)


def test_formulas():
    p, q = pair()
    assert (
        p.formula == "p(x_t, z_t, h_t | h_{t-1})"
        " = p(x_t | z_t, h_{t-1}) p(z_t | h_{t-1}) p(h_t | x_t, z_t, h_{t-1})"
    )
    assert q.latex == (
        r"q(z_{t}, h_{t} \mid x_{t}, h_{t-1})"
        r" = q(z_{t} \mid x_{t}, h_{t-1}) \, q(h_{t} \mid x_{t}, z_{t}, h_{t-1})"
    )
    assert "GRUCell" in p._repr_latex_()
    plain = models.VRNN(
        Recurrence(nn.GRUCell(3, 4)),
        default_prior(dist.Normal, 2),
        lambda z, h: dist.Normal(z, 1.0),
    )
    assert "p(z_t) p(h_t" in plain.formula


def test_samples_of_sequences_equal_the_models_result():
    """With a length, a site has all its steps: draws, or means given the earlier draws."""
    torch.manual_seed(0)
    cell = Recurrence(nn.GRUCell(3 + 2, 4))
    prior = Conditional(dist.Normal, MLP(4, [4]), 2)
    p = models.VRNN(cell, prior, Conditional(dist.Normal, MLP([2, 4], [4]), 3))
    torch.manual_seed(1)
    with torch.no_grad():
        nodes = pyro.poutine.trace(p).get_trace(batch_size=5, length=6).nodes
    found = evaluate.sample(p, 5, length=6, site=["x", "z"], seed=1)
    assert torch.equal(found["x"], nodes["_RETURN"]["value"]) and found["x"].shape == (5, 6, 3)
    assert torch.equal(found["z"][:, 2], nodes["z_2"]["value"]) and found["z"].shape == (
        5,
        6,
        2,
    )
    means = evaluate.sample(p, 5, length=6, mean=True, seed=1)
    assert torch.equal(means[:, 3], nodes["x_3"]["fn"].mean)

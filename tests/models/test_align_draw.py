"""AlignDRAW, against its loss by hand, captions without padding, and conditional DRAW."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tarspyro import Conditional, evaluate, fit, guides, load_run, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, FIVO, IWAE, check_pair, log_weights
from tarspyro.nn import (
    MLP,
    Alignment,
    AttentionRead,
    AttentionWrite,
    Canvas,
    IdentityTrunk,
    LanguageRNN,
    Recurrence,
)
from tarspyro.sequences import states_of

from ..infer.test_compiled import assert_same_step
from .test_draw import SHAPE, double, lstm, parameters_of, shaken, window  # noqa: F401

WORDS = 7
# All sizes differ, so that no two can be confused.
LATENT, DECODER, ENCODER, AHEAD, BACK, UNITS = 2, 5, 4, 3, 6, 8
BOUNDS = {
    "ELBO": ELBO,
    "IWAE": lambda: IWAE(3),
    "IWAE, dreg": lambda: IWAE(3, gradient="dreg"),
    "FIVO": lambda: FIVO(3),
}


def pair(steps=3, rnn=nn.LSTM, learned=False):
    language = LanguageRNN(nn.Embedding(WORDS, 4), rnn(4, AHEAD), rnn(4, BACK))
    align = Alignment(DECODER, language.out_features, UNITS)
    cell = nn.LSTMCell(LATENT + language.out_features, DECODER)
    canvas = Canvas(Recurrence(cell, learn_initial=learned), AttentionWrite(DECODER, SHAPE, 3))
    likelihood = Conditional(dist.Bernoulli, IdentityTrunk(SHAPE), SHAPE)
    read = AttentionRead(DECODER, SHAPE, 2)
    encoder = Recurrence(
        nn.LSTMCell(read.out_features + DECODER, ENCODER), learn_initial=learned
    )
    transition = Conditional(dist.Normal, MLP(DECODER, []), LATENT)
    posterior = Conditional(dist.Normal, MLP(ENCODER, []), LATENT)
    shared = (language, align, canvas, likelihood, steps)
    p = models.AlignDRAW(default_prior(dist.Normal, LATENT), transition, *shared)
    return p, guides.AlignDRAW(posterior, encoder, read, *shared)


def captioned(num=4):
    """Images, captions of one to five words, and their lengths."""
    x = torch.bernoulli(torch.full((num, *SHAPE), 0.4))
    return x, torch.randint(WORDS, (num, 5)), torch.arange(num) % 5 + 1


def densities(p, q, draws, *data):
    """The log-densities of all sites, of p and of q, given the draws."""
    found = {}
    for half, name in ((p, "p"), (q, "q")):
        trace = poutine.trace(pyro.condition(half, draws)).get_trace(*data)
        trace.compute_log_prob()
        for site, node in trace.nodes.items():
            if site[0] in "zx":
                found[f"{name}({site})"] = node["log_prob"]
    return found


def draws_of(q, *data):
    trace = poutine.trace(q).get_trace(*data)
    return {name: trace.nodes[name]["value"] for name in trace.nodes if name[:2] == "z_"}


# --- the language and the alignment


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_language_is_a_packed_bidirectional_rnn(double, batch_first):  # noqa: F811
    """The features are those of torch's own bidirectional LSTM on packed sentences."""
    torch.manual_seed(0)
    first = {"batch_first": batch_first}
    language = LanguageRNN(nn.Embedding(WORDS, 4), nn.LSTM(4, 3, **first), nn.LSTM(4, 3))
    both = nn.LSTM(4, 3, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for name, weight in language.forward_rnn.named_parameters():
            getattr(both, name).copy_(weight)
        for name, weight in language.backward.rnn.named_parameters():
            getattr(both, f"{name}_reverse").copy_(weight)
    _, y, lengths = captioned(5)
    packed = pack_padded_sequence(language.embedding(y), lengths, True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(both(packed)[0], batch_first=True)
    found = language(y, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, :length], expected[row, :length])
    torch.testing.assert_close(language(y[:, :3]), both(language.embedding(y[:, :3]))[0])


def test_the_weights_sum_to_one_on_words_alone(double):  # noqa: F811
    """Whatever the padding holds, also under particles, and without its gradient."""
    torch.manual_seed(0)
    align = Alignment(DECODER, 3, UNITS)
    hidden, features = torch.randn(2, 4, DECODER), torch.randn(4, 5, 3, requires_grad=True)
    lengths = torch.tensor([1, 3, 5, 2])
    inside = torch.arange(5) < lengths[:, None]
    broken = features.masked_fill(~inside.unsqueeze(-1), torch.inf)
    words = align.words(broken, lengths)
    weights = align.weights(hidden, words)
    assert weights.shape == (2, 4, 5) and (weights[:, ~inside] == 0).all()
    assert (weights[:, inside] > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))

    # the formula, one word at a time
    match = [
        torch.tanh(align.key(features[:, k]) + align.query(hidden)) @ align.score.weight[0]
        for k in range(5)
    ]
    scores = torch.stack(match, -1).exp() * inside
    expected = scores / scores.sum(-1, keepdim=True)
    torch.testing.assert_close(weights, expected)
    context = align(hidden, words)
    torch.testing.assert_close(
        context, (expected.unsqueeze(-1) * features).sum(-2), equal_nan=False
    )
    (gradient,) = torch.autograd.grad(context.sum(), features)
    assert gradient.isfinite().all() and (gradient[~inside] == 0).all()


# --- what the bounds compute


def by_hand(p, q, x, y, lengths):
    """Minus the bound, eqs. 1 to 8 of the paper and its section 3.3, without Pyro; one caption
    at a time and without padding.
    """
    loss = 0.0
    for row, length in enumerate(lengths.tolist()):
        loss = loss + _of_one(p, q, x[row : row + 1, 0], y[row, :length], row)
    return loss


def _of_one(p, q, x, words, row):
    embedded = p.language.embedding(words)
    features = []
    for rnn, order in (
        (p.language.forward_rnn, range(len(words))),
        (p.language.backward.rnn, range(len(words) - 1, -1, -1)),
    ):
        weights = [rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0]
        cell = nn.LSTMCell(rnn.input_size, rnn.hidden_size)
        cell = {name: w for (name, _), w in zip(cell.named_parameters(), weights, strict=True)}
        cell = type("Cell", (), cell)
        state, found = [torch.zeros(1, rnn.hidden_size)] * 2, {}
        for k in order:
            state = lstm(cell, embedded[k : k + 1], state)
            found[k] = state[0]
        features.append(torch.cat([found[k] for k in range(len(words))]))
    w = torch.cat(features, 1)

    h = [part[None] for part in p.canvas.cell.start]
    g = [part[None] for part in q.encoder.start]
    canvas, loss = p.canvas.start, 0.0
    read, write, align = q.read, p.canvas.write, p.align
    for t in range(p.steps):
        error = x - 1 / (1 + torch.exp(-canvas))
        rows, columns, intensity = window(
            linear(h[0], read.placing.weight, read.placing.bias), 2
        )
        seen = [
            (intensity * torch.einsum("nia,nab,njb->nij", rows, image, columns)).flatten(1)
            for image in (x, error)
        ]
        g = lstm(q.encoder.cell, torch.cat([*seen, h[0]], 1), g)
        loc, log_scale = parameters(q.posterior, g[0])
        z = loc + log_scale.exp() * NOISE[t][row]
        before, log_before = parameters(p.transition, h[0])
        if t == 0:
            before, log_before = torch.zeros(LATENT), torch.zeros(LATENT)
        ratio = (2 * (log_scale - log_before)).exp()
        squares = ((loc - before) / log_before.exp()) ** 2
        loss = loss + 0.5 * (ratio + squares - 1 - 2 * (log_scale - log_before)).sum()

        scores = torch.exp(torch.tanh(align.key(w) + align.query(h[0])) @ align.score.weight.T)
        s = (scores * w).sum(0) / scores.sum()
        h = lstm(p.canvas.cell.cell, torch.cat([z, s[None]], 1), h)
        rows, columns, intensity = window(
            linear(h[0], write.placing.weight, write.placing.bias), 3
        )
        patch = linear(h[0], write.patch.weight, write.patch.bias).reshape(-1, 3, 3)
        canvas = canvas + torch.einsum("nia,nij,njb->nab", rows, patch, columns) / intensity
    return loss - (x * canvas - torch.log1p(torch.exp(canvas))).sum()


def parameters(conditional, hidden):
    heads = conditional.heads
    return [linear(hidden, heads[n].weight, heads[n].bias) for n in ("loc", "scale")]


NOISE = []


def test_the_loss_by_hand(double):  # noqa: F811
    """Value and gradient of minus the bound with the same noise, in padded captions."""
    p, q = shaken(*pair(learned=True))
    data, bound, results = captioned(), ELBO(), []
    bound.structure(p, q, *data)
    torch.manual_seed(1)
    NOISE[:] = [torch.randn(4, LATENT) for _ in range(p.steps)]
    for function in (
        lambda: by_hand(p, q, *data),
        lambda: bound.differentiable_loss(p, q, *data),
    ):
        torch.manual_seed(1)
        loss = function()
        gradients = torch.autograd.grad(loss, parameters_of(p, q))
        results.append([loss.detach(), *gradients])
    assert all((gradient != 0).any() for gradient in results[0])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_padding_does_not_change_densities(double):  # noqa: F811
    """Every site's density equals that of the caption alone, without padding; the length
    counts.
    """
    p, q = shaken(*pair())
    x, y, lengths = captioned(5)
    draws = draws_of(q, x, y, lengths)
    together = densities(p, q, draws, x, y, lengths)
    assert len(together) == 7
    other = y.where(torch.arange(5) < lengths[:, None], (y + 1) % WORDS)
    longer = torch.cat([other, other], 1)
    for padded in (other, longer):
        for site, value in densities(p, q, draws, x, padded, lengths).items():
            torch.testing.assert_close(value, together[site])
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        own = {name: value[one] for name, value in draws.items()}
        for site, value in densities(p, q, own, x[one], y[one, :length]).items():
            torch.testing.assert_close(value, together[site][one])
    whole = densities(p, q, draws, x, y)
    assert ((whole["p(x)"] - together["p(x)"]).abs() > 1e-6).tolist() == [True] * 4 + [False]


def test_one_word_is_conditional_draw(double):  # noqa: F811
    """One word leaves nothing to align to: it is the condition of every step. A transition
    with zero weights is the standard normal prior.
    """
    p, q = shaken(*pair())
    x, y, _ = captioned()
    y = y[:, :1]
    condition = p.language(y)[:, 0].detach()
    with torch.no_grad():
        for head in p.transition.heads.values():
            head.weight.zero_()
            head.bias.zero_()
    cell = q.encoder.cell
    blind = Recurrence(nn.LSTMCell(cell.input_size + AHEAD + BACK, ENCODER))
    with torch.no_grad():
        for name, weight in cell.named_parameters():
            own = getattr(blind.cell, name).zero_()
            own[..., : weight.shape[-1]].copy_(weight)
    shared = (p.canvas, p.likelihood, p.steps)
    given = models.ConditionalDRAW(default_prior(dist.Normal, LATENT), *shared)
    reading = guides.ConditionalDRAW(q.posterior, blind, q.read, *shared)
    draws = draws_of(q, x, y)
    found = densities(p, q, draws, x, y)
    for site, value in densities(given, reading, draws, x, condition).items():
        torch.testing.assert_close(value, found[site])
    assert not torch.equal(found["p(x)"], densities(p, q, draws, x, y.flip(0))["p(x)"])


def test_particles_are_one_run_each(double):  # noqa: F811
    p, q = shaken(*pair())
    data = captioned()
    draws = draws_of(pyro.plate("particles", 3, dim=-2)(q), *data)
    assert draws["z_2"].shape == (3, 4, LATENT)
    together = densities(p, q, draws, *data)
    for k in range(3):
        own = densities(p, q, {name: value[k] for name, value in draws.items()}, *data)
        for site, value in own.items():
            torch.testing.assert_close(value, together[site][k])


# --- training


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_trains_and_generates(bound):
    torch.manual_seed(0)
    p, q = pair(rnn=nn.GRU)
    x, y, lengths = captioned(60)
    x = x * (torch.rand(x.shape) < 0.2)
    data = {"x": x, "y": y, "lengths": lengths}
    check_pair(p, q, x, y, lengths)
    before = -evaluate.elbo(p, q, data).elbo.mean()
    how = {"epochs": 3, "lr": 3e-2, "batch_size": 20, "progress": False, "seed": 0}
    history = fit(p, q, data, loss=bound(), **how)
    assert history["loss"][-1] < before - 1
    assert log_weights(p, q, x, y, lengths, num_particles=7).shape == (7, 60)
    assert evaluate.log_likelihood(p, q, data, num_particles=5).isfinite().all()
    assert p(y=y, lengths=lengths).shape == (60, *SHAPE)
    assert p(y=y[:1], lengths=lengths[:1], batch_size=5).shape == (5, *SHAPE)
    given = {"y": y[:3], "lengths": lengths[:3]}
    assert evaluate.canvases(p, num=3, given=given).images.shape == (3, 4, *SHAPE)


def test_recorded_steps_are_the_eager_ones():
    x, y, lengths = captioned()
    y, lengths = y[:, :2], lengths.clamp(max=2)
    assert_same_step(ELBO(), *shaken(*pair(steps=2)), x, y, lengths)


# The caption says all, so that the best code says nothing.
@pytest.mark.filterwarnings("ignore:The posterior has collapsed")
def test_the_words_decide_where_order_does():
    """Trained on images that the order of two words decides, the model paints what the order
    says.
    """
    torch.manual_seed(0)
    p, q = pair(steps=2)
    y = torch.tensor([[0, 1, 2], [1, 0, 6]])
    lengths = torch.tensor([2, 2])
    x = torch.zeros(2, *SHAPE)
    x[0, ..., :3] = 1.0
    x[1, ..., 3:] = 1.0
    data = [part.repeat_interleave(40, 0) for part in (x, y, lengths)]
    fit(p, q, data, epochs=15, batch_size=40, lr=0.05, progress=False, seed=0)
    given = {"y": y, "lengths": lengths}
    means = evaluate.sample(p, 2, given=given, mean=True, seed=0)
    assert ((means > 0.5) == (x > 0.5)).float().mean() > 0.9
    states = states_of(p, **given)
    for state in states[:-1]:
        features = p.align.words(p.language(y, lengths), lengths)
        weights = p.align.weights(p.canvas.hidden(state), features)
        assert (weights[:, 2] == 0).all()


def test_run_folders_restore_the_pair(tmp_path):
    p, q = pair()
    data = captioned(8)
    fit(p, q, data, epochs=1, folder=tmp_path / "run", seed=0, progress=False)
    run = load_run(tmp_path / "run")
    assert repr(run.model) == repr(p) and repr(run.guide) == repr(q)
    assert run.model.align is run.guide.align and run.model.language is run.guide.language
    scores = [
        evaluate.log_likelihood(*halves, data, num_particles=5, seed=0)
        for halves in ((p, q), run[:2])
    ]
    assert torch.equal(*scores)


# --- what is refused


def test_bad_input():
    p, q = pair()
    x, y, lengths = captioned()
    with pytest.raises(
        ValueError, match=r"y must be given.* models.AlignDRAW .*model\(x, y\)"
    ):
        p(x)
    with pytest.raises(TypeError, match="words must be a tensor of whole numbers"):
        p(x, y.float())
    with pytest.raises(ValueError, match=r"words must be of shape .*, got \(4,\)"):
        q(x, y[:, 0])
    with pytest.raises(ValueError, match="words must be from 0 to 6, .*, got 0 to 7"):
        fit(p, q, (x, torch.tensor([[0, 7]] * 4)), epochs=1, progress=False)
    for wrong, message in ((lengths - 1, "at least 1, got 0"), (lengths + 2, "at most 5")):
        with pytest.raises(ValueError, match=message):
            fit(p, q, (x, y, wrong), epochs=1, progress=False)
    with pytest.raises(TypeError, match="embedding must be a torch.nn.Embedding"):
        LanguageRNN(nn.Linear(3, 4), nn.GRU(4, 3), nn.GRU(4, 3))
    with pytest.raises(TypeError, match="forward_rnn must be .* of one direction"):
        LanguageRNN(nn.Embedding(3, 4), nn.GRU(4, 3, bidirectional=True), nn.GRU(4, 3))
    with pytest.raises(ValueError, match="units must be at least 1, got 0"):
        Alignment(3, 4, units=0)

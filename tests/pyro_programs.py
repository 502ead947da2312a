"""Programs with the structure of Pyro's examples and tutorials, so tiny that log p(x) is
known.

A builder returns the pair as Pyro's users write it, its arguments, and log p(x) by a way of
its own: a sum, a grid, a closed form, or many draws from the prior.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal, init_to_value
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.distributions import constraints
from torch.nn.functional import softmax, softplus
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Pair(NamedTuple):
    """A pair, and its log p(x), times the scale of a data point; or that and its standard
    error.
    """

    model: Callable
    guide: Callable
    args: tuple
    evidence: Callable | None = None
    modules: tuple = ()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp(inputs, outputs, hidden=6):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def halves(values):
    loc, scale = values.chunk(2, -1)
    return loc, softplus(scale) + 0.1


def joined(*parts):
    """Concatenates what broadcasts, as labels do that take all their values."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(shape + part.shape[-1:]) for part in parts], -1)


def grid(dims, points=81, reach=8.0):
    """Nodes of the trapezoidal rule, very exact for smooth densities, and a cell's log volume."""
    axis = torch.linspace(-reach, reach, points)
    nodes = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"), -1).reshape(-1, dims)
    return nodes, dims * math.log(2 * reach / (points - 1))


def log_integral(log_density, log_cell):
    """Over the first dimension, which is the grid's."""
    return log_density.logsumexp(0) + log_cell


def standard_normal(z):
    return dist.Normal(0.0, 1.0).log_prob(z).sum(-1)


# The variational autoencoder, and its conditional and semi-supervised relatives.


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(5, 4), mlp(2, 5)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample(
                "latent",
                dist.Normal(x.new_zeros(len(x), 2), x.new_ones(len(x), 2)).to_event(1),
            )
            pyro.sample(
                "obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.reshape(-1, 5)
            )

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample(
                "latent", dist.Normal(*halves(self.encoder(x.reshape(-1, 5)))).to_event(1)
            )


def vae():
    vae, x = VAE(), (normal(6, 5) > 0).to(torch.get_default_dtype())

    def evidence():
        z, cell = grid(2)
        likelihood = dist.Bernoulli(logits=vae.decoder(z).unsqueeze(1)).to_event(1).log_prob(x)
        return log_integral(standard_normal(z).unsqueeze(1) + likelihood, cell).sum()

    return Pair(vae.model, vae.guide, (x,), evidence, (vae,))


class ConditionalVAE(nn.Module):
    """Fills in the pixels that are -1 in ``xs``; indexing by a mask picks those that are
    scored.
    """

    def __init__(self):
        super().__init__()
        self.baseline, self.prior, self.recognition = mlp(6, 6), mlp(12, 4), mlp(12, 4)
        self.generation = nn.Sequential(mlp(2, 6), nn.Sigmoid())

    def model(self, xs, ys):
        pyro.module("cvae", self)
        with pyro.plate("data"):
            with torch.no_grad():
                guess = self.baseline(xs)
            z = pyro.sample(
                "z", dist.Normal(*halves(self.prior(joined(xs, guess)))).to_event(1)
            )
            probs = self.generation(z)
            masked = probs[(xs == -1).view(-1, 6)].view(len(xs), -1)
            pyro.sample(
                "y", dist.Bernoulli(masked).to_event(1), obs=ys[xs == -1].view(len(xs), -1)
            )

    def guide(self, xs, ys):
        with pyro.plate("data"):
            pyro.sample(
                "z", dist.Normal(*halves(self.recognition(joined(xs, ys)))).to_event(1)
            )


def conditional_vae():
    cvae, ys = ConditionalVAE(), (normal(6, 6) > 0).to(torch.get_default_dtype())
    xs = ys.clone()
    xs[:, 2:] = -1

    def evidence():
        z, cell = grid(2)
        prior = dist.Normal(*halves(cvae.prior(joined(xs, cvae.baseline(xs))))).to_event(1)
        likelihood = (
            dist.Bernoulli(cvae.generation(z)[:, None, 2:]).to_event(1).log_prob(ys[:, 2:])
        )
        return log_integral(prior.log_prob(z.unsqueeze(1)) + likelihood, cell).sum()

    return Pair(cvae.model, cvae.guide, (xs, ys), evidence, (cvae,))


class M2(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder_y, self.encoder_z, self.decoder = mlp(5, 3), mlp(5 + 3, 4), mlp(2 + 3, 5)
        self.encoder = mlp(5, 4)  # of a guide that leaves the labels to the model

    def model(self, xs, ys=None):
        pyro.module("m2", self)
        with pyro.plate("data"):
            z = pyro.sample(
                "z", dist.Normal(xs.new_zeros(len(xs), 2), xs.new_ones(len(xs), 2)).to_event(1)
            )
            ys = pyro.sample("y", dist.OneHotCategorical(xs.new_ones(len(xs), 3) / 3), obs=ys)
            pyro.sample(
                "x", dist.Bernoulli(logits=self.decoder(joined(z, ys))).to_event(1), obs=xs
            )

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(logits=self.encoder_y(xs)))
            pyro.sample("z", dist.Normal(*halves(self.encoder_z(joined(xs, ys)))).to_event(1))

    def guide_without_labels(self, xs, ys=None):
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(*halves(self.encoder(xs))).to_event(1))

    def classify(self, xs, ys):
        """The auxiliary loss: a model of the labels without latent variables, with a scale."""
        pyro.module("m2", self)
        with pyro.plate("data"), poutine.scale(scale=0.3):
            pyro.sample("y_aux", dist.OneHotCategorical(logits=self.encoder_y(xs)), obs=ys)

    def nothing(self, xs, ys):
        pass

    def log_joint(self, xs):
        """Log p(x, y), for each label a row."""
        z, cell = grid(2)
        labels = torch.eye(3)[:, None]
        logits = (
            self.decoder(joined(z.expand(3, len(z), 2), labels)).transpose(0, 1).unsqueeze(2)
        )
        likelihood = dist.Bernoulli(logits=logits).to_event(1).log_prob(xs)
        return log_integral(standard_normal(z)[:, None, None] + likelihood, cell) - math.log(3)


def m2_data():
    xs = (normal(6, 5) > 0).to(torch.get_default_dtype())
    return xs, torch.eye(3)[torch.arange(6) % 3]


def m2_summed_in_the_guide():
    m2, (xs, _) = M2(), m2_data()
    guide = config_enumerate(m2.guide, "parallel", expand=True)
    return Pair(m2.model, guide, (xs,), lambda: m2.log_joint(xs).logsumexp(0).sum(), (m2,))


def m2_summed_in_the_model():
    m2, (xs, _) = M2(), m2_data()
    return Pair(config_enumerate(m2.model), m2.guide_without_labels, (xs,), None, (m2,))


def m2_labelled():
    m2, (xs, ys) = M2(), m2_data()
    return Pair(m2.model, m2.guide, (xs, ys), lambda: (m2.log_joint(xs) * ys.T).sum(), (m2,))


def m2_auxiliary_loss():
    m2, (xs, ys) = M2(), m2_data()

    def evidence():
        return 0.3 * (m2.encoder_y(xs).log_softmax(-1) * ys).sum()

    return Pair(m2.classify, m2.nothing, (xs, ys), evidence, (m2,))


# Sequences: the deep Markov model, and hidden Markov models.


def reverse(sequences, lengths):
    """Each sequence from its own end to its beginning; what follows stays where it is."""
    steps = torch.arange(sequences.shape[1])
    index = torch.where(steps < lengths.unsqueeze(1), lengths.unsqueeze(1) - 1 - steps, steps)
    return sequences.gather(1, index.unsqueeze(-1).expand_as(sequences))


class DeepMarkovModel(nn.Module):
    def __init__(self, mask_by_handler=False):
        super().__init__()
        self.mask_by_handler = mask_by_handler
        self.emitter, self.transition, self.combiner = mlp(1, 3), mlp(1, 2), mlp(5, 2)
        self.rnn = nn.RNN(3, 4, nonlinearity="relu", batch_first=True)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, 4))

    def draw(self, name, law, mask, obs=None):
        if self.mask_by_handler:
            with poutine.mask(mask=mask.bool()):
                return pyro.sample(name, law.to_event(1), obs=obs)
        return pyro.sample(name, law.mask(mask.unsqueeze(-1)).to_event(1), obs=obs)

    def model(self, sequences, backwards, mask, lengths, annealing=1.0):
        pyro.module("dmm", self)
        z = self.z_0.expand(len(sequences), 1)
        with pyro.plate("z_minibatch", len(sequences)):
            for t in pyro.markov(range(1, sequences.shape[1] + 1)):
                with poutine.scale(scale=annealing):
                    z = self.draw(
                        f"z_{t}", dist.Normal(*halves(self.transition(z))), mask[:, t - 1]
                    )
                law = dist.Bernoulli(logits=self.emitter(z))
                self.draw(f"obs_x_{t}", law, mask[:, t - 1], sequences[:, t - 1])

    def guide(self, sequences, backwards, mask, lengths, annealing=1.0):
        pyro.module("dmm", self)
        steps = sequences.shape[1]
        packed = pack_padded_sequence(
            backwards, lengths, batch_first=True, enforce_sorted=False
        )
        states, _ = self.rnn(packed, self.h_0.expand(1, len(sequences), 4).contiguous())
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=steps)
        states = reverse(states, lengths)
        z = self.z_q_0.expand(len(sequences), 1)
        with pyro.plate("z_minibatch", len(sequences)):
            for t in pyro.markov(range(1, steps + 1)):
                features = joined(states[:, t - 1], z)
                with poutine.scale(scale=annealing):
                    z = self.draw(
                        f"z_{t}", dist.Normal(*halves(self.combiner(features))), mask[:, t - 1]
                    )

    def log_likelihood(self, sequences, lengths):
        """By filtering on a grid of states."""
        z, cell = grid(1, 401)
        moves = dist.Normal(*halves(self.transition(z))).log_prob(
            z.T
        )  # from (rows) to (columns)
        first = dist.Normal(*halves(self.transition(self.z_0))).log_prob(z)[:, 0]
        total = 0.0
        for x, length in zip(sequences, lengths.tolist(), strict=True):
            alpha = first
            for t in range(length):
                alpha = alpha if t == 0 else (alpha.unsqueeze(1) + moves).logsumexp(0) + cell
                alpha = alpha + dist.Bernoulli(logits=self.emitter(z)).log_prob(x[t]).sum(-1)
            total = total + alpha.logsumexp(0) + cell
        return total


def deep_markov_model(annealing=None, mask_by_handler=False):
    dmm, lengths = DeepMarkovModel(mask_by_handler), torch.tensor([4, 4, 3, 2, 2, 1])
    mask = (torch.arange(4) < lengths.unsqueeze(1)).to(torch.get_default_dtype())
    x = (normal(6, 4, 3) > 0) * mask.unsqueeze(-1)  # zeros after the end
    args = (x, reverse(x, lengths), mask, lengths) + (
        () if annealing is None else (annealing,)
    )
    return Pair(dmm.model, dmm.guide, args, lambda: dmm.log_likelihood(x, lengths), (dmm,))


class HiddenMarkovModel:
    """Chords of several tones; the hidden states take all their values in the model."""

    states, tones = 3, 2

    def priors(self):
        probs_x = pyro.sample(
            "probs_x", dist.Dirichlet(0.9 * torch.eye(self.states) + 0.1).to_event(1)
        )
        law = dist.Beta(0.8, 0.9).expand([self.states, self.tones]).to_event(2)
        return probs_x, pyro.sample("probs_y", law)

    def one_by_one(self, sequences, lengths):
        probs_x, probs_y = self.priors()
        tones = pyro.plate("tones", self.tones, dim=-1)
        for i in pyro.plate("sequences", len(sequences)):
            x = 0
            for t in pyro.markov(range(int(lengths[i]))):
                x = pyro.sample(
                    f"x_{i}_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"}
                )
                with tones:
                    pyro.sample(
                        f"y_{i}_{t}",
                        dist.Bernoulli(probs_y[x.squeeze(-1)]),
                        obs=sequences[i, t],
                    )

    def batched(self, sequences, lengths, batch_size=None, probs=None):
        probs_x, probs_y = self.priors() if probs is None else probs()
        tones = pyro.plate("tones", self.tones, dim=-1)
        with pyro.plate("sequences", len(sequences), batch_size, dim=-2) as batch:
            lengths = lengths[batch]
            x = 0
            for t in pyro.markov(range(int(lengths.max()))):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(
                        f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"}
                    )
                    with tones:
                        pyro.sample(
                            f"y_{t}",
                            dist.Bernoulli(probs_y[x.squeeze(-1)]),
                            obs=sequences[batch, t],
                        )

    def parameters(self):
        states = 0.6 * torch.eye(self.states) + 0.4 / self.states
        probs_x = pyro.param("probs_x", lambda: states, constraint=constraints.simplex)
        probs = torch.tensor([[0.1, 0.3], [0.5, 0.2], [0.7, 0.9]])
        return probs_x, pyro.param(
            "probs_y", lambda: probs, constraint=constraints.unit_interval
        )

    def log_likelihood(self, sequences, lengths):
        """By the forward algorithm."""
        probs_x, probs_y = self.parameters()
        total = 0.0
        for y, length in zip(sequences, lengths.tolist(), strict=True):
            alpha = probs_x[0]
            for t in range(length):
                alpha = alpha if t == 0 else alpha @ probs_x
                alpha = alpha * dist.Bernoulli(probs_y).log_prob(y[t]).sum(-1).exp()
            total = total + alpha.sum().log()
        return total


def chords():
    return (normal(4, 4, 2) > 0).to(torch.get_default_dtype()), torch.tensor([4, 3, 2, 1])


def hidden_markov_model(form="batched", batch_size=None):
    model = functools.partial(HiddenMarkovModel().batched, batch_size=batch_size)
    if form == "one by one":
        model = HiddenMarkovModel().one_by_one
    guide = AutoDelta(
        poutine.block(model, expose_fn=lambda site: site["name"].startswith("probs_"))
    )
    return Pair(model, guide, chords())


def hidden_markov_model_without_priors():
    hmm, data = HiddenMarkovModel(), chords()

    def model(sequences, lengths):
        hmm.batched(sequences, lengths, probs=hmm.parameters)

    def guide(sequences, lengths):
        pass

    return Pair(model, guide, data, lambda: hmm.log_likelihood(*data))


# Attend, infer, repeat: how many objects there are is drawn, up to a maximum.


class AttendInferRepeat(nn.Module):
    steps, pixels, deviation = 2, 5, 0.4

    def __init__(self):
        super().__init__()
        self.rnn, self.predict = nn.LSTMCell(self.pixels + 3, 6), nn.Linear(6, 3)
        self.encode, self.decode = mlp(self.pixels + 1, 2), mlp(1, 1)
        self.baseline_rnn, self.baseline_predict = (
            nn.LSTMCell(self.pixels + 3, 6),
            nn.Linear(6, 1),
        )

    def object_at(self, where, what):
        """An object on the line of pixels."""
        return softplus(self.decode(what)) * torch.exp(
            -((torch.arange(self.pixels) - 2.0 - where) ** 2)
        )

    def model(self, data, batch_size=None):
        pyro.module("decode", self.decode)
        with pyro.plate("data", len(data)) as rows:
            batch = data[rows]
            image, present = torch.zeros_like(batch), batch.new_ones(len(batch), 1)
            for t in range(self.steps):
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(0.5 * present).to_event(1))
                standard = (
                    dist.Normal(batch.new_zeros(len(batch), 1), 1.0).mask(present).to_event(1)
                )
                where = pyro.sample(f"z_where_{t}", standard)
                what = pyro.sample(f"z_what_{t}", standard)
                image = image + self.object_at(where, what) * present
            pyro.sample("obs", dist.Normal(image, self.deviation).to_event(1), obs=batch)

    def guide(self, data, batch_size=None):
        for name, module in self.named_children():
            pyro.module(name, module)
        with pyro.plate("data", len(data), subsample_size=batch_size) as rows:
            batch = data[rows]
            where = what = batch.new_zeros(len(batch), 1)
            present = batch.new_ones(len(batch), 1)
            state = baseline_state = (
                batch.new_zeros(len(batch), 6),
                batch.new_zeros(len(batch), 6),
            )
            for t in range(self.steps):
                seen = torch.cat([batch, where, what, present], 1)
                state = self.rnn(seen, state)
                baseline_state = self.baseline_rnn(seen.detach(), baseline_state)
                baseline = self.baseline_predict(baseline_state[0]) * present
                logit, loc, scale = self.predict(state[0]).chunk(3, 1)
                present = pyro.sample(
                    f"z_pres_{t}",
                    dist.Bernoulli(torch.sigmoid(logit) * present).to_event(1),
                    infer={"baseline": {"baseline_value": baseline.squeeze(-1)}},
                )
                law = dist.Normal(loc, softplus(scale) + 0.1)
                where = pyro.sample(f"z_where_{t}", law.mask(present).to_event(1))
                law = dist.Normal(*halves(self.encode(torch.cat([batch, where], 1))))
                what = pyro.sample(f"z_what_{t}", law.mask(present).to_event(1))

    def log_likelihood(self, data):
        """The sum over the number of objects, and the integral over where and what they are."""
        z, cell = grid(2, 33, 6.0)
        prior, objects = standard_normal(z), self.object_at(z[:, :1], z[:, 1:])

        def log_density(images):
            return dist.Normal(images.unsqueeze(-2), self.deviation).log_prob(data).sum(-1)

        none = log_density(torch.zeros(1, self.pixels))[0]
        one = log_integral(prior.unsqueeze(1) + log_density(objects), cell)
        two = [
            log_integral((p + prior).unsqueeze(1) + log_density(first + objects), 2 * cell)
            for p, first in zip(prior, objects, strict=True)
        ]
        numbers = [
            none + math.log(0.5),
            one + math.log(0.25),
            torch.stack(two).logsumexp(0) + math.log(0.25),
        ]
        return torch.stack(numbers).logsumexp(0).sum()


def attend_infer_repeat(batch_size=None):
    air, data = AttendInferRepeat(), 0.5 * normal(6, 5).abs()
    model, guide = (
        functools.partial(half, batch_size=batch_size) for half in (air.model, air.guide)
    )
    return Pair(model, guide, (data,), lambda: air.log_likelihood(data), (air,))


# The sparse gamma deep exponential family: weights in plates of their own, beside that of the
# data.


class SparseGammaDEF:
    """Three layers of gamma variables above counts; the guides start near the posterior."""

    def __init__(self, x, widths=(2, 2, 1), shape=1.0, rate=1.0):
        self.x, self.shape, self.rate = x, shape, rate
        self.layers = dict(
            zip(
                ("top", "mid", "bottom"),
                itertools.pairwise((*widths, x.shape[1])),
                strict=True,
            )
        )
        rows, columns = x.sum(1) / x.sum(1).mean(), x.mean(0) / 2
        self.start = {
            f"z_{name}": torch.ones(len(x), inputs)
            for name, (inputs, _) in self.layers.items()
        }
        self.start |= {
            f"w_{name}": torch.ones(inputs * outputs)
            for name, (inputs, outputs) in self.layers.items()
        }
        inputs = self.layers["bottom"][0]
        self.start["z_bottom"] = (2 * rows).unsqueeze(1).repeat(1, inputs)
        self.start["w_bottom"] = (columns + 0.1).repeat(inputs) / inputs

    def model(self, x):
        weights = {}
        for name, (inputs, outputs) in self.layers.items():
            with pyro.plate(f"w_{name}_plate", inputs * outputs):
                w = pyro.sample(f"w_{name}", dist.Gamma(self.shape, self.rate))
                # A plate of particles comes first, if there is one.
                weights[name] = (
                    w.reshape(inputs, outputs)
                    if w.dim() == 1
                    else w.reshape(-1, inputs, outputs)
                )
        with pyro.plate("data", len(x)):
            law = dist.Gamma(x.new_tensor(self.shape), self.rate).expand(
                [self.layers["top"][0]]
            )
            z = pyro.sample("z_top", law.to_event(1))
            z = pyro.sample(
                "z_mid", dist.Gamma(self.shape, self.rate / (z @ weights["top"])).to_event(1)
            )
            z = pyro.sample(
                "z_bottom",
                dist.Gamma(self.shape, self.rate / (z @ weights["mid"])).to_event(1),
            )
            pyro.sample("obs", dist.Poisson(z @ weights["bottom"]).to_event(1), obs=x)

    def guide(self, x):
        """Gamma at every site, by concentration and mean."""

        def law(name):
            mean = self.start[name]
            shape = softplus(pyro.param(f"shape_{name}", lambda: torch.full_like(mean, 3.0)))
            mean = softplus(pyro.param(f"mean_{name}", lambda: mean.expm1().log()))
            return dist.Gamma(shape, shape / mean)

        for name, (inputs, outputs) in self.layers.items():
            with pyro.plate(f"w_{name}_plate", inputs * outputs):
                pyro.sample(f"w_{name}", law(f"w_{name}"))
        with pyro.plate("data", len(x)):
            for name in self.layers:
                pyro.sample(f"z_{name}", law(f"z_{name}").to_event(1))

    def log_likelihood(self, draws=200_000):
        """By draws from the prior of all but the last weights, which integrate out.

        The probability of counts is at most 1, so the standard error is to be trusted.
        """
        generator = torch.Generator().manual_seed(1)

        def gamma(*shape):
            assert self.shape == self.rate == 1
            return torch.empty(draws, *shape).exponential_(generator=generator)

        z = gamma(len(self.x), self.layers["top"][0]) @ gamma(*self.layers["top"])
        z = (gamma(*z.shape[1:]) * z) @ gamma(*self.layers["mid"])
        z = gamma(*z.shape[1:]) * z  # [draws, rows, 1]
        # Counts of a column: Poisson(z w) with w from Gamma(1, 1).
        totals = self.x.sum(0)
        terms = (self.x * z.log() - (self.x + 1).lgamma()).sum(1) + (totals + 1).lgamma()
        likelihood = (terms - (totals + 1) * (1 + z.sum(1)).log()).sum(-1).exp()
        return likelihood.mean().log(), likelihood.std() / likelihood.mean() / draws**0.5


class DEFGuide(EasyGuide):
    """Normal laws of the logarithms of all weights together, and of all variables of a row."""

    def __init__(self, family):
        super().__init__(family.model)
        self.start = family.start

    def guide(self, x):
        def starting_at(group):
            names = [site["name"] for site in group.prototype_sites]
            return torch.cat([self.start[name] for name in names], -1).log()

        weights = self.group(match="w_.*")
        loc = pyro.param("w_loc", lambda: starting_at(weights))
        scale = softplus(pyro.param("w_scale", lambda: torch.full_like(loc, -0.5)))
        weights.sample("ws", dist.Normal(loc, scale).to_event(1))
        rows = self.group(match="z_.*")
        with self.plate("data", len(x)):
            loc = pyro.param("z_loc", lambda: starting_at(rows))
            scale = softplus(pyro.param("z_scale", lambda: torch.full_like(loc, -0.5)))
            rows.sample("zs", dist.Normal(loc, scale).to_event(1))


def sparse_gamma_def(kind="custom"):
    profile = torch.tensor([6.0, 0, 1, 9, 0, 2, 0, 4, 0, 12])
    x = (torch.tensor([[1.0], [0.7], [1.6], [0.4]]) * profile).round()
    family = SparseGammaDEF(x)
    auto = {"AutoNormal": AutoNormal, "AutoDiagonalNormal": AutoDiagonalNormal}
    if kind == "custom":
        guide = family.guide
    elif kind == "EasyGuide":
        guide = DEFGuide(family)
    else:
        guide = auto[kind](
            family.model, init_loc_fn=init_to_value(values=family.start), init_scale=0.5
        )
    return Pair(family.model, guide, (x,), family.log_likelihood)


# Topics.


def latent_dirichlet_allocation(batch_size=None):
    topics, words, documents, length = 3, 5, 4, 6
    data = torch.randint(
        words, (length, documents), generator=torch.Generator().manual_seed(0)
    )
    predictor = nn.Sequential(mlp(words, topics), nn.Softmax(-1))

    def model(data):
        with pyro.plate("topics", topics):
            topic_weights = pyro.sample("topic_weights", dist.Gamma(1.0 / topics, 1.0))
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(words) / words))
        with pyro.plate("documents", documents) as rows:
            doc_topics = pyro.sample("doc_topics", dist.Dirichlet(topic_weights))
            with pyro.plate("words", length):
                law = dist.Categorical(doc_topics)
                topic = pyro.sample("word_topics", law, infer={"enumerate": "parallel"})
                pyro.sample(
                    "doc_words", dist.Categorical(topic_words[topic]), obs=data[:, rows]
                )

    def guide(predictor, data):
        weights = pyro.param(
            "weights_q", lambda: torch.ones(topics), constraint=constraints.positive
        )
        word_q = pyro.param(
            "words_q",
            lambda: torch.ones(topics, words),
            constraint=constraints.greater_than(0.5),
        )
        with pyro.plate("topics", topics):
            pyro.sample("topic_weights", dist.Gamma(weights, 1.0))
            pyro.sample("topic_words", dist.Dirichlet(word_q))
        pyro.module("predictor", predictor)
        with pyro.plate("documents", documents, batch_size) as rows:
            chosen = data[:, rows]
            counts = torch.zeros(words, len(rows)).scatter_add(
                0, chosen, torch.ones(chosen.shape)
            )
            pyro.sample("doc_topics", dist.Delta(predictor(counts.T), event_dim=1))

    return Pair(model, functools.partial(guide, predictor), (data,), None, (predictor,))


class ProdLDA(nn.Module):
    words, topics = 5, 2

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(self.words, 6), nn.Softplus(), nn.Dropout(0.2), nn.Linear(6, 4)
        )
        self.encoder_norm = nn.BatchNorm1d(4, affine=False)
        self.decoder = nn.Sequential(
            nn.Dropout(0.2),
            nn.Linear(self.topics, self.words, bias=False),
            nn.BatchNorm1d(self.words, affine=False),
        )

    def model(self, docs):
        pyro.module("prodlda", self)
        with pyro.plate("documents", docs.shape[0]):
            loc, scale = (
                docs.new_zeros(len(docs), self.topics),
                docs.new_ones(len(docs), self.topics),
            )
            theta = softmax(pyro.sample("logtheta", dist.Normal(loc, scale).to_event(1)), -1)
            total_count = int(docs.sum(-1).max())
            law = dist.Multinomial(total_count, softmax(self.decoder(theta), dim=1))
            pyro.sample("obs", law, obs=docs)

    def guide(self, docs):
        pyro.module("prodlda", self)
        with pyro.plate("documents", docs.shape[0]):
            loc, log_variance = self.encoder_norm(self.encoder(docs)).chunk(2, -1)
            pyro.sample("logtheta", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))

    def log_likelihood(self, docs):
        z, cell = grid(2)
        law = dist.Multinomial(
            int(docs.sum(-1).max()), softmax(self.decoder(softmax(z, -1)), -1).unsqueeze(1)
        )
        return log_integral(standard_normal(z).unsqueeze(1) + law.log_prob(docs), cell).sum()


def prodlda():
    lda = ProdLDA()
    docs = torch.tensor(
        [
            [1, 0, 2, 1, 3],
            [0, 4, 1, 0, 0],
            [2, 2, 1, 1, 1],
            [0, 0, 5, 1, 0],
            [1, 1, 1, 0, 0],
            [3, 0, 0, 0, 2],
        ]
    )
    docs = docs.to(torch.get_default_dtype())
    return Pair(lda.model, lda.guide, (docs,), lambda: lda.log_likelihood(docs), (lda,))


# Counts of single cells, half of them with labels.


def normalized(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, outputs)
    )


def in_rows(network, *parts):
    """Batch normalization takes matrices alone."""
    values = joined(*parts)
    return network(values.reshape(-1, values.shape[-1])).reshape(values.shape[:-1] + (-1,))


class SCANVI(nn.Module):
    genes, labels = 4, 2

    def __init__(self, scale=1 / 24, part=1.0):
        super().__init__()
        self.scale, self.part = scale, part
        self.z2_decoder, self.x_decoder = (
            normalized(1 + self.labels, 2),
            mlp(1, 2 * self.genes),
        )
        self.z2l_encoder, self.z1_encoder = (
            normalized(self.genes, 4),
            normalized(1 + self.labels, 2),
        )
        self.classifier = mlp(1, self.labels)

    def law_of_counts(self, z2, total):
        theta = pyro.param(
            "inverse_dispersion",
            lambda: torch.full((self.genes,), 10.0),
            constraint=constraints.positive,
        )
        gate_logits, mu = self.x_decoder(z2).chunk(2, -1)
        logits = (total * softmax(mu, -1) + 5e-3).log() - (theta + 5e-3).log()
        return dist.ZeroInflatedNegativeBinomial(
            gate_logits=gate_logits, total_count=theta, logits=logits
        ).to_event(1)

    def model(self, x, y=None):
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=self.scale):
            z1 = pyro.sample("z1", dist.Normal(0, x.new_ones(1)).to_event(1))
            y = pyro.sample(
                "y", dist.OneHotCategorical(logits=x.new_zeros(self.labels)), obs=y
            )
            z2 = pyro.sample(
                "z2", dist.Normal(*halves(in_rows(self.z2_decoder, z1, y))).to_event(1)
            )
            total = pyro.sample("l", dist.LogNormal(1.0, 0.5 * x.new_ones(1)).to_event(1))
            with poutine.scale(scale=self.part):
                pyro.sample("x", self.law_of_counts(z2, total), obs=x)

    def guide(self, x, y=None):
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=self.scale):
            z2_l = in_rows(self.z2l_encoder, torch.log1p(x))
            pyro.sample("l", dist.LogNormal(*halves(z2_l[..., 2:])).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(*halves(z2_l[..., :2])).to_event(1))
            law = dist.OneHotCategorical(logits=self.classifier(z2))
            if y is None:
                y = pyro.sample("y", law)
            else:
                pyro.factor("classification_loss", -0.1 * law.log_prob(y), has_rsample=False)
            pyro.sample(
                "z1", dist.Normal(*halves(in_rows(self.z1_encoder, z2, y))).to_event(1)
            )

    def log_joint(self, x):
        """Log p(x, y), for each label a row: integrals over z1, and then over z2 and l."""
        z, cell = grid(1, 101)
        labels = torch.eye(self.labels)[:, None]
        loc, scale = halves(in_rows(self.z2_decoder, z.expand(self.labels, len(z), 1), labels))
        # Dimensions: labels, values of z1, values of z2.
        moves = dist.Normal(loc, scale).log_prob(z[:, 0])
        z2 = (standard_normal(z).unsqueeze(-1) + moves).logsumexp(1) + cell
        # Dimensions: values of z2, values of l, rows.
        noise = z
        law = self.law_of_counts(z[:, None, None], (1.0 + 0.5 * noise).exp()[None, :, None])
        log_x = (standard_normal(noise)[None, :, None] + law.log_prob(x)).logsumexp(1) + cell
        return (z2.unsqueeze(-1) + log_x).logsumexp(1) + cell - math.log(self.labels)


def cells():
    x = torch.tensor(
        [[3.0, 0, 1, 0], [0, 5, 0, 1], [1, 1, 2, 0], [0, 0, 4, 1], [2, 0, 0, 0], [1, 3, 0, 0]]
    )
    return x, torch.eye(2)[torch.arange(6) % 2]


def scanvi_unlabelled(part=1.0):
    scanvi, (x, _) = SCANVI(part=part), cells()
    guide = config_enumerate(scanvi.guide, "parallel", expand=True)
    return Pair(
        scanvi.model,
        guide,
        (x,),
        lambda: scanvi.log_joint(x).logsumexp(0).sum() / 24,
        (scanvi,),
    )


def scanvi_labelled():
    scanvi, (x, y) = SCANVI(), cells()
    return Pair(
        scanvi.model,
        scanvi.guide,
        (x, y),
        lambda: (scanvi.log_joint(x) * y.T).sum() / 24,
        (scanvi,),
    )


# Mixtures and regressions.


@config_enumerate
def mixture(data):
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def mixture_guide(data):
    def init(site):
        values = {
            "weights": torch.tensor([0.4, 0.6]),
            "scale": data.std() / 2,
            "locs": data[:2],
        }
        return values[site["name"]]

    return AutoDelta(
        poutine.block(mixture, expose=["weights", "locs", "scale"]), init_loc_fn=init
    )


def gaussian_mixture():
    data = torch.tensor([0.0, 10.0, 1.0, 11.0, 12.0])
    return Pair(mixture, mixture_guide(data), (data,))


def gaussian_mixture_full_guide():
    """The tutorial's second step: the components' parameters stay, q(assignment) is fitted."""
    data = torch.tensor([0.0, 10.0, 1.0, 11.0, 12.0])
    components = mixture_guide(data)

    @config_enumerate
    def guide(data):
        with poutine.block(hide_types=["param"]):
            components(data)
        with pyro.plate("data", len(data)):
            probs = pyro.param(
                "probs", lambda: torch.ones(len(data), 2) / 2, constraint=constraints.simplex
            )
            pyro.sample("assignment", dist.Categorical(probs))

    def evidence():
        """Log p(x, parameters): what a point of them is weighed by."""
        weights, scale, locs = (
            components(data)[name] for name in ("weights", "scale", "locs")
        )
        prior = dist.Dirichlet(0.5 * torch.ones(2)).log_prob(weights) + dist.LogNormal(
            0.0, 2.0
        ).log_prob(scale)
        prior = prior + dist.Normal(0.0, 10.0).log_prob(locs).sum()
        return (
            prior
            + (weights.log() + dist.Normal(locs, scale).log_prob(data.unsqueeze(-1)))
            .logsumexp(-1)
            .sum()
        )

    return Pair(mixture, guide, (data,), evidence)


class BayesianRegression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(torch.zeros(1), 10.0).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


def gaussian_evidence(y, covariance, deviations, log_prior):
    """The sum over a grid of the noise's deviations; ``covariance`` is that without the noise."""
    noise = deviations.square()[:, None, None] * torch.eye(len(y))
    law = torch.distributions.MultivariateNormal(torch.zeros(len(y)), covariance + noise)
    return (log_prior + law.log_prob(y)).logsumexp(0)


def bayesian_regression():
    model, x = BayesianRegression(), normal(8, 2)
    y = x @ torch.tensor([1.0, -0.5]) + 0.5 + 0.3 * normal(8, seed=1)

    def evidence():
        sigma = (torch.arange(5000) + 0.5) / 500
        covariance = x @ x.T + 100.0
        return gaussian_evidence(
            y, covariance, sigma, torch.full_like(sigma, -math.log(len(sigma)))
        )

    start = {
        "linear.weight": torch.tensor([[1.0, -0.5]]),
        "linear.bias": torch.tensor([0.5]),
        "sigma": torch.tensor(0.4),
    }
    guide = AutoDiagonalNormal(model, init_loc_fn=init_to_value(values=start), init_scale=0.2)
    return Pair(model, guide, (x, y), evidence)


def hierarchical_regression():
    """An intercept for each group, found by its index, as in radon levels by county."""
    x, group = normal(18), torch.arange(18) % 6
    y = (
        torch.tensor([1.0, -1.0, 0.5, -2.0, 1.5, 0.0])[group]
        + 0.7 * x
        + 0.4 * normal(18, seed=1)
    )
    levels = (y - 0.7 * x).reshape(3, 6).mean(0)

    def model(x, group, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.LogNormal(-0.5, 0.5))
        with pyro.plate("groups", 6):
            intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(intercept[..., group] + slope * x, sigma), obs=y)

    def evidence():
        z, cell = grid(1, 401)
        covariance = x.outer(x) + (group.unsqueeze(1) == group)
        return gaussian_evidence(
            y, covariance, (-0.5 + 0.5 * z[:, 0]).exp(), standard_normal(z) + cell
        )

    start = {"slope": torch.tensor(0.7), "sigma": torch.tensor(0.5), "intercept": levels}
    guide = AutoNormal(model, init_loc_fn=init_to_value(values=start), init_scale=0.25)
    return Pair(model, guide, (x, group, y), evidence)

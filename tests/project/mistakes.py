"""Mistakes of beginners: what they write, what the library says, and what works.

``docs/mistakes.md`` shows them, and ``test_mistakes.py`` runs them.
"""

from dataclasses import dataclass

SETUP = '''
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import tarspyro
from tarspyro import Conditional, Deterministic, FromNetwork, IncompleteLikelihood, Optimizer
from tarspyro import Run, StochasticModule, data, distributions, evaluate, fit, guides, infer
from tarspyro import load_run, models, plot
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP, Discriminator, Log1p, Standardize, WithGaps

table = torch.linspace(-2, 2, 240).reshape(40, 6)  # 40 rows of 6 real numbers
counts = (torch.arange(240) % 7).float().reshape(40, 6)
pixels = (torch.arange(2560) % 3 == 0).float().reshape(40, 64)  # black and white
images = pixels.reshape(40, 1, 8, 8)
labels = torch.arange(40) % 3
short = {"epochs": 2, "batch_size": 20, "progress": False, "seed": 0}


def vae(family, x, latent=2, **fixed):
    """A model and a guide with small networks, for the rows of x."""
    shape = tuple(x.shape[1:])
    likelihood = Conditional(family, MLP(latent, [16]), shape, **fixed)
    posterior = Conditional(dist.Normal, MLP(shape, [16]), latent)
    return models.VAE(default_prior(dist.Normal, latent), likelihood), guides.VAE(posterior)


p, q = vae(dist.Normal, table, scale=0.5)
'''


@dataclass
class Mistake:
    """A mistake.

    Attributes:
        title: What is wrong, in the words of somebody who knows.
        code: What the beginner writes.
        kind: The class of the error or of the warning.
        words: Parts of the sentence that have to be there: the name of what is wrong, its
            value, and the remedy.
        fixed: The code after the remedy, which runs without an error or a warning.
    """

    title: str
    code: str
    kind: str
    words: tuple[str, ...]
    fixed: str | None = None


DATA = [
    Mistake(
        "Rows of another length than the likelihood",
        "fit(p, q, table[:, :5], **short)",
        "InputError",
        ("x has rows of shape (5,)", "draws (6,)", "give data with rows of shape (6,)"),
        "fit(p, q, table[:, :6], **short)",
    ),
    Mistake(
        "Images with the channels last",
        """
colour = torch.linspace(0, 1, 40 * 8 * 8 * 3).reshape(40, 8, 8, 3)
p, q = vae(dist.Normal, torch.zeros(40, 3, 8, 8), scale=0.1)
fit(p, q, colour, **short)
""",
        "InputError",
        ("x has rows of shape (8, 8, 3)", "draws (3, 8, 8)", ".permute(0, 3, 1, 2)"),
        """
colour = torch.linspace(0, 1, 40 * 8 * 8 * 3).reshape(40, 8, 8, 3)
p, q = vae(dist.Normal, torch.zeros(40, 3, 8, 8), scale=0.1)
fit(p, q, torch.as_tensor(colour).permute(0, 3, 1, 2), **short)
""",
    ),
    Mistake(
        "Images with the channels last, where the pixels of a channel are a vector",
        """
colour = np.linspace(0, 1, 40 * 8 * 8 * 3).reshape(40, 8, 8, 3)
p, q = vae(dist.Normal, torch.zeros(40, 3, 64), scale=0.1)
fit(p, q, colour, **short)
""",
        "InputError",
        (
            "x has rows of shape (8, 8, 3)",
            "draws (3, 64)",
            "torch.as_tensor(x).permute(0, 3, 1, 2).reshape(len(x), 3, 64)",
        ),
        """
colour = np.linspace(0, 1, 40 * 8 * 8 * 3).reshape(40, 8, 8, 3)
p, q = vae(dist.Normal, torch.zeros(40, 3, 64), scale=0.1)
fit(p, q, torch.as_tensor(colour).permute(0, 3, 1, 2).reshape(len(colour), 3, 64), **short)
""",
    ),
    Mistake(
        "Images without a channel axis",
        """
p, q = vae(dist.Bernoulli, images)
fit(p, q, pixels.reshape(40, 8, 8), **short)
""",
        "InputError",
        ("x has rows of shape (8, 8)", "draws (1, 8, 8)", "x[:, None]"),
        """
p, q = vae(dist.Bernoulli, images)
fit(p, q, pixels.reshape(40, 8, 8)[:, None], **short)
""",
    ),
    Mistake(
        "Vectors for a likelihood of images",
        """
p, q = vae(dist.Bernoulli, images)
fit(p, q, pixels, **short)
""",
        "InputError",
        ("x has rows of shape (64,)", "draws (1, 8, 8)", "x.reshape(len(x), 1, 8, 8)"),
        """
p, q = vae(dist.Bernoulli, images)
fit(p, q, pixels.reshape(len(pixels), 1, 8, 8), **short)
""",
    ),
    Mistake(
        "Bytes of images under a Normal",
        """
x = 255 * pixels
p, q = vae(dist.Normal, x, scale=0.1)
fit(p, q, x, **short)
""",
        "UserWarning",
        ("x looks like the bytes of images", "up to 255", "Normal", "divide by 255, x / 255"),
        """
x = 255 * pixels
p, q = vae(dist.Normal, x, scale=0.1)
fit(p, q, x / 255, **short)
""",
    ),
    Mistake(
        "Bytes of images under a Bernoulli",
        """
p, q = vae(dist.Bernoulli, pixels)
fit(p, q, 255 * pixels, **short)
""",
        "InputError",
        ("x has values from 0 to 255", "Bernoulli (0 and 1)", "divide by 255", "binarize"),
        """
p, q = vae(dist.Bernoulli, pixels)
fit(p, q, 255 * pixels / 255, binarize=True, **short)
""",
    ),
    Mistake(
        "Grey values under a Bernoulli",
        """
p, q = vae(dist.Bernoulli, pixels)
fit(p, q, 0.5 * pixels, **short)
""",
        "InputError",
        ("x has grey values (from 0 to 0.5)", "Bernoulli", "binarize=True"),
        """
p, q = vae(dist.Bernoulli, pixels)
fit(p, q, 0.5 * pixels, binarize=True, **short)
""",
    ),
    Mistake(
        "Pixels from -1 to 1 under a Bernoulli",
        """
p, q = vae(dist.Bernoulli, pixels)
fit(p, q, 2 * pixels - 1, **short)
""",
        "InputError",
        ("x has values from -1 to 1", "Bernoulli (0 and 1)", "(x + 1) / 2"),
        """
p, q = vae(dist.Bernoulli, pixels)
x = 2 * pixels - 1
fit(p, q, (x + 1) / 2, binarize=True, **short)
""",
    ),
    Mistake(
        "Zeros and ones under a Beta",
        """
p, q = vae(dist.Beta, pixels)
fit(p, q, pixels, **short)
""",
        "InputError",
        (
            "x has values of exactly 0 and 1",
            "the density of Beta is 0 or infinite",
            "ContinuousBernoulli",
        ),
        """
p, q = vae(dist.ContinuousBernoulli, pixels)
fit(p, q, pixels, **short)
p, q = vae(dist.Beta, pixels)
fit(p, q, pixels.clip(0.001, 0.999), **short)
""",
    ),
    Mistake(
        "Zeros under a Gamma",
        """
p, q = vae(dist.Gamma, table)
fit(p, q, table.clamp(min=0), **short)
""",
        "InputError",
        (
            "x has values of exactly 0",
            "the density of Gamma is 0 or infinite",
            "x.clip(min=0.001)",
        ),
        """
p, q = vae(dist.Gamma, table)
fit(p, q, table.clamp(min=0).clip(min=0.001), **short)
""",
    ),
    Mistake(
        "Negative numbers under a Gamma",
        """
p, q = vae(dist.Gamma, table)
fit(p, q, table, **short)
""",
        "InputError",
        ("x has values from -2 to 2", "Gamma (numbers of at least 0)", "dist.Normal"),
        """
p, q = vae(dist.Normal, table)
fit(p, q, table, **short)
""",
    ),
    Mistake(
        "Real numbers under a Poisson",
        """
p, q = vae(dist.Poisson, table)
fit(p, q, table.abs(), **short)
""",
        "InputError",
        ("Poisson (whole numbers of at least 0)", "round the data if it holds counts"),
        """
p, q = vae(dist.Poisson, table)
fit(p, q, table.abs().round(), **short)
""",
    ),
    Mistake(
        "Large counts that go into the network as they are",
        """
x = 1000 * counts
p, q = vae(dist.Poisson, x)
q.posterior.is_new = False  # a Conditional that fit would initialize from the data
fit(p, q, x, **short)
""",
        "UserWarning",
        (
            "guides.VAE gets inputs of scale 3,5",
            "Log1p(), Standardize.of(torch.as_tensor(x).log1p()), network",
        ),
        """
x = 1000 * counts
p, _ = vae(dist.Poisson, x)
network = nn.Sequential(Log1p(), Standardize.of(torch.as_tensor(x).log1p()), MLP(6, [16]))
q = guides.VAE(Conditional(dist.Normal, network, 2))
fit(p, q, x, **short)
""",
    ),
    Mistake(
        "A Multinomial without its number of trials",
        """
p, q = vae(dist.Multinomial, counts)
fit(p, q, counts, **short)
""",
        "InputError",
        ("x has values from 0 to 6", "Multinomial", "give total_count", "total_count=21"),
        """
p, q = vae(dist.Multinomial, counts, total_count=21)
fit(p, q, counts, **short)
""",
    ),
    Mistake(
        "Frequencies under a Multinomial",
        """
x = counts / 10
p, q = vae(dist.Multinomial, x)
fit(p, q, x, **short)
""",
        "InputError",
        ("Multinomial", "it takes counts, and these are shares", "use dist.Dirichlet"),
        """
x = counts / 10
p, q = vae(dist.Multinomial, x, total_count=21)
fit(p, q, (10 * x).round(), **short)
""",
    ),
    Mistake(
        "More classes than a Categorical has",
        """
p, q = vae(dist.Categorical, counts, param_shapes={"logits": (6, 5)})
fit(p, q, counts, **short)
""",
        "InputError",
        ("x has values from 0 to 6", "give 7 classes, param_shapes={'logits': (6, 7)}"),
        """
p, q = vae(dist.Categorical, counts, param_shapes={"logits": (6, 7)})
fit(p, q, counts, **short)
""",
    ),
    Mistake(
        "Classes that are counted from 1",
        """
p, q = vae(dist.Categorical, counts, param_shapes={"logits": (6, 7)})
fit(p, q, counts + 1, **short)
""",
        "InputError",
        ("x has values from 1 to 7", "count the classes from 0, x - 1"),
        """
p, q = vae(dist.Categorical, counts, param_shapes={"logits": (6, 7)})
x = counts + 1
fit(p, q, x - 1, **short)
""",
    ),
    Mistake(
        "Zeros under a Dirichlet",
        """
x = torch.eye(6).repeat(7, 1)
p, q = vae(dist.Dirichlet, x)
fit(p, q, x, **short)
""",
        "InputError",
        ("x has values of exactly 0", "(x + 0.001) / (x + 0.001).sum(-1)[..., None]"),
        """
x = torch.eye(6).repeat(7, 1)
p, q = vae(dist.Dirichlet, x)
fit(p, q, (x + 0.001) / (x + 0.001).sum(-1)[..., None], **short)
""",
    ),
    Mistake(
        "A support whose end the network computes",
        """
p, q = vae(dist.Pareto, table)
fit(p, q, 1 + table.abs(), **short)
""",
        "InputError",
        ("likelihood of x computes scale", "support of Pareto ends", "scale=..."),
        """
p, q = vae(dist.Pareto, table, scale=0.9)
fit(p, q, 1 + table.abs(), **short)
""",
    ),
    Mistake(
        "Rows under a Dirichlet that do not sum to 1",
        """
x = 1 + counts
p, q = vae(dist.Dirichlet, x)
fit(p, q, x, **short)
""",
        "InputError",
        ("Dirichlet (vectors of positive numbers with the sum 1)", "x / x.sum(-1)[..., None]"),
        """
x = 1 + counts
p, q = vae(dist.Dirichlet, x)
fit(p, q, x / x.sum(-1)[..., None], **short)
""",
    ),
    Mistake(
        "Labels in place of data",
        "fit(p, q, labels, **short)",
        "InputError",
        ("x has shape (20,)", "torch.int64", "look like labels", "rows of shape (6,)"),
        "fit(p, q, table, **short)",
    ),
    Mistake(
        "Labels as numbers, where the likelihood is one of one-hot vectors",
        """
p, q = vae(dist.OneHotCategorical, torch.zeros(40, 3))
fit(p, q, labels, **short)
""",
        "InputError",
        ("x has shape (20,)", "one-hot", "one_hot(torch.as_tensor(x), 3).float()"),
        """
p, q = vae(dist.OneHotCategorical, torch.zeros(40, 3))
fit(p, q, torch.nn.functional.one_hot(torch.as_tensor(labels), 3).float(), **short)
""",
    ),
    Mistake(
        "Labels as numbers for a conditional model",
        """
prior = default_prior(dist.Normal, 2)
p = models.ConditionalVAE(prior, Conditional(dist.Normal, MLP([2, 3], [16]), 6))
q = guides.ConditionalVAE(Conditional(dist.Normal, MLP([6, 3], [16]), 2))
fit(p, q, (table, labels), **short)
""",
        "InputError",
        ("y of shape (20,)", "torch.int64", "one-hot vectors"),
        """
prior = default_prior(dist.Normal, 2)
p = models.ConditionalVAE(prior, Conditional(dist.Normal, MLP([2, 3], [16]), 6))
q = guides.ConditionalVAE(Conditional(dist.Normal, MLP([6, 3], [16]), 2))
fit(p, q, data.Split(table, labels).one_hot(), **short)
""",
    ),
    Mistake(
        "Labels beside the data, where the model takes none",
        "fit(p, q, (table, labels), **short)",
        "ValueError",
        ("data has 2 parts", "models.VAE takes 1 (x)", "leave out the extra parts"),
        "fit(p, q, table, **short)",
    ),
    Mistake(
        "Words as data",
        "fit(p, q, np.array(['cat', 'dog']), **short)",
        "TypeError",
        ("data must be numbers", "'cat'", "turn words into one-hot vectors"),
        """
words = np.array(["cat", "dog"])
x = torch.nn.functional.one_hot(torch.as_tensor(np.unique(words, return_inverse=True)[1])).float()
p, q = vae(dist.OneHotCategorical, x)
fit(p, q, x, **short)
""",
    ),
    Mistake(
        "Numbers in words as data",
        "fit(p, q, table.numpy().astype(str), **short)",
        "TypeError",
        ("data must be numbers", "'-2.0'", "np.array(words).astype(float)"),
        """
words = table.numpy().astype(str)
fit(p, q, np.array(words).astype(float), **short)
""",
    ),
    Mistake(
        "The name of a file as data",
        "fit(p, q, 'table.csv', **short)",
        "TypeError",
        ("data must be numbers", "'table.csv'", "tarspyro.data.load('table.csv')"),
    ),
    Mistake(
        "A gap in the data",
        """
x = table.clone()
x[3, 2] = float("nan")
fit(p, q, x, **short)
""",
        "InputError",
        (
            "data[0] has NaN",
            "1 of 40 rows, first in row 3",
            "IncompleteLikelihood",
            "WithGaps",
        ),
        """
x = table.clone()
x[3, 2] = float("nan")
p = models.VAE(p.prior, IncompleteLikelihood(p.likelihood))
q = guides.VAE(Conditional(dist.Normal, WithGaps(MLP([6, 6], [16]), 6), 2))
fit(p, q, x, **short)
""",
    ),
    Mistake(
        "A constant column, divided by its standard deviation",
        """
x = table.clone()
x[:, 1] = 7
x = (x - x.mean(0)) / x.std(0)
fit(p, q, x, **short)
""",
        "InputError",
        ("data[0] has NaN", "column 1", "constant column", "leave that column out"),
        """
x = table.clone()
x[:, 1] = 7
x = x[:, [0, 2, 3, 4, 5]]
x = (x - x.mean(0)) / x.std(0)
p, q = vae(dist.Normal, x, scale=0.5)
fit(p, q, x, **short)
""",
    ),
    Mistake(
        "A single row",
        "fit(p, q, table[0], **short)",
        "InputError",
        ("x has shape (6,)", "one row", "x[None]"),
        "fit(p, q, table[0][None], **short)",
    ),
    Mistake(
        "No rows at all",
        "fit(p, q, table[table[:, 0] > 5], **short)",
        "ValueError",
        ("data is empty", "no rows", "got shape (0, 6)"),
    ),
    Mistake(
        "Parts with different numbers of rows",
        """
p = models.ConditionalVAE(p.prior, Conditional(dist.Normal, MLP([2, 3], [16]), 6))
q = guides.ConditionalVAE(Conditional(dist.Normal, MLP([6, 3], [16]), 2))
fit(p, q, (table, torch.eye(3)[labels][:30]), **short)
""",
        "ValueError",
        ("(40, 6), (30, 3)", "differ in length", "a row for each data point"),
    ),
    Mistake(
        "A list of sequences of several lengths",
        "fit(p, q, [torch.zeros(3, 2), torch.zeros(5, 2)], **short)",
        "ValueError",
        ("differ in length", "from 3 to 5 rows", "torch.cat", "models.VRNN"),
        "torch.cat([torch.zeros(3, 2), torch.zeros(5, 2)])",
    ),
    Mistake(
        "A name that the model does not know",
        "fit(p, q, {'images': table}, **short)",
        "ValueError",
        ("data has 'images'", "models.VAE", "it takes ['x']"),
        "fit(p, q, {'x': table}, **short)",
    ),
]

PAIRS = [
    Mistake(
        "Model and guide swapped",
        "fit(q, p, table, **short)",
        "PairError",
        ("guides.VAE observes nothing", "['x']", "swapped", "the model comes first"),
        "fit(p, q, table, **short)",
    ),
    Mistake(
        "Model and guide swapped in an evaluation",
        "evaluate.log_likelihood(q, p, table)",
        "PairError",
        ("guides.VAE observes nothing", "swapped", "the model comes first"),
        "evaluate.log_likelihood(p, q, table, num_particles=2)",
    ),
    Mistake(
        "Model and guide swapped in a bound",
        "infer.ELBO().loss(q, p, table)",
        "PairError",
        ("guides.VAE observes nothing", "swapped", "the model comes first"),
        "infer.ELBO().loss(p, q, table)",
    ),
    Mistake(
        "Codes from the model",
        "evaluate.embed(p, table)",
        "PairError",
        ("models.VAE observes ['x']", "give the guide"),
        "evaluate.embed(q, table)",
    ),
    Mistake(
        "Samples from the guide",
        "evaluate.sample(q, 3)",
        "PairError",
        ("guides.VAE is a guide", "give the model"),
        "evaluate.sample(p, 3)",
    ),
    Mistake(
        "Latent variables of different sizes",
        """
p, _ = vae(dist.Normal, table, latent=2)
_, q = vae(dist.Normal, table, latent=3)
fit(p, q, table, **short)
""",
        "PairError",
        ("'z'", "(2,) in models.VAE", "(3,) in guides.VAE", "the same event shape"),
        """
p, q = vae(dist.Normal, table, latent=3)
fit(p, q, table, **short)
""",
    ),
    Mistake(
        "A decoder for another size of the latent variable",
        """
p = models.VAE(default_prior(dist.Normal, 3), Conditional(dist.Normal, MLP(2, [16]), 6))
q = guides.VAE(Conditional(dist.Normal, MLP(6, [16]), 3))
fit(p, q, table, **short)
""",
        "InputError",
        ("models.VAE", "likelihood(z) got z of shape (20, 3)", "shape (*, 2)"),
        """
p = models.VAE(default_prior(dist.Normal, 3), Conditional(dist.Normal, MLP(3, [16]), 6))
q = guides.VAE(Conditional(dist.Normal, MLP(6, [16]), 3))
fit(p, q, table, **short)
""",
    ),
    Mistake(
        "An encoder for another number of columns",
        """
q = guides.VAE(Conditional(dist.Normal, MLP(5, [16]), 2))
fit(p, q, table, **short)
""",
        "InputError",
        ("guides.VAE", "posterior(x) got x of shape (20, 6)", "shape (*, 5)"),
        """
q = guides.VAE(Conditional(dist.Normal, MLP(6, [16]), 2))
fit(p, q, table, **short)
""",
    ),
    Mistake(
        "An encoder of torch's layers for another number of columns",
        """
network = nn.Sequential(nn.Linear(5, 16), nn.ReLU())
q = guides.VAE(Conditional(dist.Normal, network, 2))
fit(p, q, table, **short)
""",
        "InputError",
        (
            "guides.VAE",
            "posterior(x) got x of shape (20, 6)",
            "a linear layer takes vectors of size 5, got size 6",
        ),
        """
network = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
q = guides.VAE(Conditional(dist.Normal, network, 2))
fit(p, q, table, **short)
""",
    ),
    Mistake(
        "Latent variables of different names",
        """
def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("code", q.posterior(x))

fit(p, guide, table, **short)
""",
        "PairError",
        ("['z']", "['code']", "the same name in both"),
    ),
    Mistake(
        "A prior and a posterior of different supports",
        """
q = guides.VAE(Conditional(distributions.Gamma, MLP(6, [16]), 2))
fit(p, q, table, **short)
""",
        "PairError",
        ("'z'", "Normal (real numbers)", "Gamma (numbers of at least 0)", "Gamma in both"),
        """
q = guides.VAE(Conditional(distributions.Gamma, MLP(6, [16]), 2))
p = models.VAE(default_prior(distributions.Gamma, 2), p.likelihood)
fit(p, q, table, **short)
""",
    ),
    Mistake(
        "No guide for a model with latent variables",
        "fit(p, data=table, **short)",
        "PairError",
        ("guide is None", "models.VAE samples ['z']", "give a guide"),
        "fit(p, q, data=table, **short)",
    ),
    Mistake(
        "Data in the place of the guide",
        "fit(p, table, **short)",
        "TypeError",
        ("guide must be a module or a function", "a tensor of shape (40, 6)"),
        "fit(p, q, table, **short)",
    ),
    Mistake(
        "A class in other capitals",
        "models.Vae(p.prior, p.likelihood)",
        "AttributeError",
        ("'tarspyro.models' has no attribute 'Vae'", "did you mean VAE?"),
        "models.VAE(p.prior, p.likelihood)",
    ),
    Mistake(
        "The class of a guide in place of a guide",
        "fit(p, guides.VAE, table, **short)",
        "TypeError",
        ("guide", "the class VAE", "VAE(...)"),
        "fit(p, guides.VAE(q.posterior), table, **short)",
    ),
    Mistake(
        "A conditional distribution in place of a guide",
        "fit(p, Conditional(dist.Normal, MLP(6, [16]), 2), table, **short)",
        "PairError",
        ("Conditional", "['z']", "guides.VAE(conditional)"),
        "fit(p, guides.VAE(Conditional(dist.Normal, MLP(6, [16]), 2)), table, **short)",
    ),
    Mistake(
        "A plain network as the posterior",
        "fit(p, guides.VAE(nn.Linear(6, 2)), table, **short)",
        "PairError",
        ("'z'", "a tensor of shape (20, 2)", "Conditional(dist.Normal, network, event_shape)"),
        "fit(p, guides.VAE(Conditional(dist.Normal, nn.Linear(6, 2), 2)), table, **short)",
    ),
    Mistake(
        "A plain network as the generator of a GAN",
        """
game = infer.Adversarial(Discriminator(MLP(6, [16])))
fit(models.GAN(p.prior, nn.Linear(2, 6)), data=table, loss=game, **short)
""",
        "PairError",
        ("'x'", "a tensor of shape (20, 6)", "Deterministic"),
        """
game = infer.Adversarial(Discriminator(MLP(6, [16])))
p = models.GAN(p.prior, Deterministic(nn.Linear(2, 6), 6))
fit(p, data=table, loss=game, **short)
""",
    ),
    Mistake(
        "A network that returns a distribution",
        """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(6, 2)

    def forward(self, x):
        return dist.Normal(self.loc(x), 1.0).to_event(1)

q = guides.VAE(Conditional(dist.Normal, Encoder(), 2))
fit(p, q, table, **short)
""",
        "InputError",
        ("posterior(x)", "it is a distribution already", "FromNetwork(network)"),
        """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(6, 2)

    def forward(self, x):
        return dist.Normal(self.loc(x), 1.0).to_event(1)

q = guides.VAE(FromNetwork(Encoder()))
fit(p, q, table, **short)
""",
    ),
    Mistake(
        "A network that returns parameters by name",
        """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(6, 2)

    def forward(self, x):
        return {"loc": self.loc(x)}

q = guides.VAE(Conditional(dist.Normal, Encoder(), 2))
fit(p, q, table, **short)
""",
        "InputError",
        ("posterior(x)", "a mapping of 'loc'", "let it return a tuple"),
        """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(6, 2)

    def forward(self, x):
        return (self.loc(x),)

q = guides.VAE(FromNetwork(Encoder(), lambda loc: dist.Normal(loc, 1.0).to_event(1)))
fit(p, q, table, **short)
""",
    ),
    Mistake(
        "A network that returns a mean and a log variance",
        """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(6, 2)
        self.log_variance = nn.Linear(6, 2)

    def forward(self, x):
        return self.loc(x), self.log_variance(x)

q = guides.VAE(Conditional(dist.Normal, Encoder(), 2))
fit(p, q, table, **short)
""",
        "InputError",
        ("posterior(x)", "Encoder returns 2 values", "FromNetwork(network, "),
        """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(6, 2)
        self.log_variance = nn.Linear(6, 2)

    def forward(self, x):
        return self.loc(x), self.log_variance(x)

def normal(loc, log_variance):
    return dist.Normal(loc, (log_variance / 2).exp()).to_event(1)

fit(p, guides.VAE(FromNetwork(Encoder(), normal)), table, **short)
""",
    ),
    Mistake(
        "The class of a network in place of a network",
        "Conditional(dist.Normal, MLP, 2)",
        "TypeError",
        ("trunk must be a torch.nn.Module", "got the class MLP", "MLP(...)"),
        "Conditional(dist.Normal, MLP(6, [16]), 2)",
    ),
    Mistake(
        "A distribution in place of its family",
        "Conditional(dist.Normal(0.0, 1.0), MLP(6, [16]), 2)",
        "TypeError",
        (
            "family must be a class",
            "Normal(loc: 0.0, scale: 1.0)",
            "pyro.distributions.Normal",
        ),
        "Conditional(dist.Normal, MLP(6, [16]), 2)",
    ),
    Mistake(
        "Another name of a parameter",
        "Conditional(dist.Normal, MLP(2, [16]), 6, std=0.1)",
        "ValueError",
        ("Normal has no parameter 'std'", "did you mean scale?"),
        "Conditional(dist.Normal, MLP(2, [16]), 6, scale=0.1)",
    ),
    Mistake(
        "Another name of an argument of a model",
        "models.VAE(p.prior, decoder=p.likelihood)",
        "TypeError",
        ("no argument 'decoder'", "did you mean likelihood?"),
        "models.VAE(p.prior, likelihood=p.likelihood)",
    ),
    Mistake(
        "Layers of torch from the networks of the library",
        "tarspyro.nn.Linear(6, 2)",
        "AttributeError",
        ("'tarspyro.nn' has no attribute 'Linear'", "torch.nn.Linear"),
        "torch.nn.Linear(6, 2)",
    ),
]

PROGRAMS = [
    Mistake(
        "A module that does not call super().__init__()",
        """
class Model(StochasticModule):
    def __init__(self, prior):
        self.prior = prior

Model(p.prior)
""",
        "TypeError",
        ("Model.__init__ sets 'prior'", "super().__init__()", "in its first line"),
        """
class Model(StochasticModule):
    def __init__(self, prior):
        super().__init__()
        self.prior = prior

Model(p.prior)
""",
    ),
    Mistake(
        "Factors of an attribute that does not exist",
        """
class Model(StochasticModule):
    factors = {"priors": "z"}

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

print(Model(p.prior))
""",
        "TypeError",
        ("factors of Model", "'priors'", "did you mean 'prior'?"),
        """
class Model(StochasticModule):
    factors = {"prior": "z"}

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

print(Model(p.prior))
""",
    ),
    Mistake(
        "A model that does not observe the data",
        """
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", p.prior())
        p.likelihood(z)

infer.ELBO().loss(model, q, table)
""",
        "PairError",
        ("model observes nothing", "obs=x"),
        """
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", p.prior())
        pyro.sample("x", p.likelihood(z), obs=x)

infer.ELBO().loss(model, q, table)
""",
    ),
    Mistake(
        "A module that is sampled from without a call",
        """
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", p.prior)
        pyro.sample("x", p.likelihood(z), obs=x)

infer.ELBO().loss(model, q, table)
""",
        "PairError",
        ("'z'", "a module Prior", "pyro.sample('z', module(...))"),
        """
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", p.prior())
        pyro.sample("x", p.likelihood(z), obs=x)

infer.ELBO().loss(model, q, table)
""",
    ),
    Mistake(
        "A distribution in place of a draw",
        """
def model(x):
    with pyro.plate("data", len(x)):
        z = p.prior()
        pyro.sample("x", p.likelihood(z), obs=x)

infer.ELBO().loss(model, q, table)
""",
        "InputError",
        ("Normal", "draw from the distribution", "pyro.sample(name, distribution)"),
        """
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", p.prior())
        pyro.sample("x", p.likelihood(z), obs=x)

infer.ELBO().loss(model, q, table)
""",
    ),
    Mistake(
        "An array as the observation",
        """
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", p.prior())
        pyro.sample("x", p.likelihood(z), obs=x.numpy())

fit(model, q, table, **short)
""",
        "PairError",
        ("'x' observes an array of shape (20, 6)", "obs=x"),
        """
def model(x):
    pyro.module("p", p)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", p.prior())
        pyro.sample("x", p.likelihood(z), obs=x)

fit(model, q, table, **short)
""",
    ),
    Mistake(
        "The rows in the event of a likelihood",
        """
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", p.prior())
        pyro.sample("x", dist.Normal(z @ torch.ones(2, 6), 1.0).to_event(2), obs=x)

fit(model, q, table, **short)
""",
        "InputError",
        ("x has shape (20, 6)", "if it is 20 rows", ".to_event(1)"),
        """
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", p.prior())
        pyro.sample("x", dist.Normal(z @ torch.ones(2, 6), 1.0).to_event(1), obs=x)

fit(model, q, table, **short)
""",
    ),
    Mistake(
        "A vector that is not one event",
        """
def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :2], 1.0))

infer.ELBO().loss(p, guide, table)
""",
        "PairError",
        ("'z'", "batch shape (40, 2)", ".to_event(1)"),
        """
def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

infer.ELBO().loss(p, guide, table)
""",
    ),
    Mistake(
        "A plate of a fixed size",
        """
def model(x):
    with pyro.plate("data", 100):
        z = pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))
        pyro.sample("x", p.likelihood(z), obs=x)

infer.ELBO().loss(model, q, table)
""",
        "PairError",
        ("'data'", "100", "40", "len(x)"),
        """
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))
        pyro.sample("x", p.likelihood(z), obs=x)

infer.ELBO().loss(model, q, table)
""",
    ),
    Mistake(
        "A program without plates",
        """
def model(x):
    z = pyro.sample("z", p.prior().expand([len(x)]))
    pyro.sample("x", p.likelihood(z), obs=x)

def guide(x):
    pyro.sample("z", q.posterior(x))

evaluate.log_likelihood(model, guide, table)
""",
        "PairError",
        ("model has no weight for each data point", "['z']", "plate"),
        """
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", p.prior())
        pyro.sample("x", p.likelihood(z), obs=x)

def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", q.posterior(x))

evaluate.log_likelihood(model, guide, table, num_particles=2)
""",
    ),
    Mistake(
        "The log-likelihood of data points that share a latent variable",
        """
def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

def guide(x):
    pyro.sample("mean", dist.Normal(x.mean(), 0.1))

evaluate.log_likelihood(model, guide, table[:, 0])
""",
        "PairError",
        ("model has no weight for each data point", "['mean']", "-IWAE("),
        """
def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

def guide(x):
    pyro.sample("mean", dist.Normal(x.mean(), 0.1))

-infer.IWAE(num_particles=5).loss(model, guide, table[:, 0])
""",
    ),
    Mistake(
        "A guide that observes",
        """
def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", q.posterior(x), obs=x[:, :2])

infer.ELBO().loss(p, guide, table)
""",
        "PairError",
        ("guide observes ['z']", "only the model may observe", "leave out obs=..."),
        """
def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", q.posterior(x))

infer.ELBO().loss(p, guide, table)
""",
    ),
    Mistake(
        "A guide without the data as its argument",
        """
def guide():
    pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

fit(p, guide, table, **short)
""",
        "ValueError",
        ("guide takes no data", "guide(x)"),
    ),
    Mistake(
        "A network outside the guide",
        """
network = nn.Linear(6, 2)

def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(network(x), 1.0).to_event(1))

fit(p, guide, table, **short)
""",
        "PairError",
        ("2 parameters", "(2, 6)", "would not be trained", "pyro.module('network', network)"),
        """
network = nn.Linear(6, 2)

def guide(x):
    pyro.module("network", network)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(network(x), 1.0).to_event(1))

fit(p, guide, table, **short)
""",
    ),
    Mistake(
        "A pair that has nothing to train",
        """
def model(x):
    with pyro.plate("data", len(x)):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

def guide(x):
    loc = torch.tensor(0.0)
    with pyro.plate("data", len(x)):
        pyro.sample("mean", dist.Normal(loc, 1.0))

fit(model, guide, table[:, 0], **short)
""",
        "PairError",
        ("The model and the guide have no parameters to train", "pyro.param"),
        """
def model(x):
    with pyro.plate("data", len(x)):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("mean", dist.Normal(loc, 1.0))

fit(model, guide, table[:, 0], **short)
""",
    ),
]

TRAINING = [
    Mistake(
        "An argument in the words of another library",
        "fit(p, q, table, learning_rate=0.01)",
        "TypeError",
        ("no argument 'learning_rate'", "did you mean lr?"),
        "fit(p, q, table, lr=0.01, **short)",
    ),
    Mistake(
        "A misspelt argument",
        "fit(p, q, table, batchsize=20)",
        "TypeError",
        ("no argument 'batchsize'", "did you mean batch_size?"),
        "fit(p, q, table, **short)",
    ),
    Mistake(
        "An argument of a bound in the words of a paper",
        "infer.IWAE(k=5)",
        "TypeError",
        ("IWAE() has no argument 'k'", "did you mean num_particles?"),
        "infer.IWAE(num_particles=5)",
    ),
    Mistake(
        "A negative weight of the KL divergence",
        "infer.ELBO(beta=-1)",
        "ValueError",
        ("beta must not be negative", "-1"),
        "infer.ELBO(beta=1)",
    ),
    Mistake(
        "The name of a loss",
        "fit(p, q, table, loss='elbo', **short)",
        "TypeError",
        ("loss must be a bound or a game", "'elbo'", "tarspyro.infer.ELBO()"),
        "fit(p, q, table, loss=tarspyro.infer.ELBO(), **short)",
    ),
    Mistake(
        "The class of a loss",
        "fit(p, q, table, loss=infer.IWAE, **short)",
        "TypeError",
        ("loss must be a bound or a game, got the class IWAE", "IWAE()"),
        "fit(p, q, table, loss=infer.IWAE(), **short)",
    ),
    Mistake(
        "A loss of torch",
        "fit(p, q, table, loss=nn.MSELoss(), **short)",
        "TypeError",
        ("loss must be a bound or a game", "MSELoss()", "likelihood", "dist.Normal"),
        "fit(p, q, table, **short)",
    ),
    Mistake(
        "The name of an optimizer",
        "fit(p, q, table, optimizer='adam', **short)",
        "TypeError",
        ("optimizer must be the class", "'adam'", "torch.optim.Adam"),
        "fit(p, q, table, optimizer=torch.optim.Adam, **short)",
    ),
    Mistake(
        "An optimizer of torch with its parameters",
        "fit(p, q, table, optimizer=torch.optim.SGD(p.parameters(), lr=0.01), **short)",
        "TypeError",
        ("an instance of SGD", "optimizer=torch.optim.SGD", "lr=0.01"),
        "fit(p, q, table, optimizer=torch.optim.SGD, lr=0.01, **short)",
    ),
    Mistake(
        "An optimizer of Pyro",
        "fit(p, q, table, optimizer=pyro.optim.Adam({'lr': 0.01}), **short)",
        "TypeError",
        ("optimizer must be the class", "pyro.optim", "torch.optim", "lr="),
        "fit(p, q, table, optimizer=torch.optim.Adam, lr=0.01, **short)",
    ),
    Mistake(
        "An optimizer that needs the loss several times",
        "fit(p, q, table, optimizer=torch.optim.LBFGS, **short)",
        "TypeError",
        ("LBFGS", "computes the loss several times", "torch.optim.Adam"),
        "fit(p, q, table, optimizer=torch.optim.Adam, **short)",
    ),
    Mistake(
        "An option of another optimizer",
        "fit(p, q, table, optimizer=Optimizer(torch.optim.Adam, momentum=0.9), **short)",
        "TypeError",
        ("optimizer", "Adam", "no 'momentum'", "its arguments are lr, betas"),
        "fit(p, q, table, optimizer=Optimizer(torch.optim.SGD, momentum=0.9), **short)",
    ),
    Mistake(
        "A learning rate of 10",
        "fit(p, q, table, lr=10, **short)",
        "NonFiniteError",
        ("step 2", "use a smaller learning rate than lr=10", "lr=0.001"),
        "fit(p, q, table, lr=0.001, **short)",
    ),
    Mistake(
        "A negative learning rate",
        "fit(p, q, table, lr=-0.001, **short)",
        "ValueError",
        ("lr must not be negative", "-0.001"),
        "fit(p, q, table, lr=0.001, **short)",
    ),
    Mistake(
        "A learning rate that is no number",
        "fit(p, q, table, lr=float('nan'), **short)",
        "ValueError",
        ("lr must be a number", "nan"),
        "fit(p, q, table, lr=0.001, **short)",
    ),
    Mistake(
        "A negative number of epochs",
        "fit(p, q, table, epochs=-1)",
        "ValueError",
        ("epochs must be at least 1", "-1"),
        "fit(p, q, table, epochs=1, progress=False)",
    ),
    Mistake(
        "Epochs as a real number",
        "fit(p, q, table, epochs=1e2)",
        "TypeError",
        ("epochs must be a whole number", "100.0"),
        "fit(p, q, table, epochs=int(1e2), progress=False)",
    ),
    Mistake(
        "Black and white pixels drawn from real numbers",
        "fit(p, q, table, binarize=True, **short)",
        "InputError",
        ("binarize=True needs pixels between 0 and 1", "from -2 to 2", "leave out binarize"),
        "fit(p, q, table, **short)",
    ),
    Mistake(
        "Black and white pixels under a Normal",
        """
p, q = vae(dist.Normal, pixels, scale=0.1)
fit(p, q, 0.5 * pixels, binarize=True, **short)
""",
        "UserWarning",
        ("binarize=True draws x as 0 and 1", "Normal", "dist.Bernoulli"),
        """
p, q = vae(dist.Bernoulli, pixels)
fit(p, q, 0.5 * pixels, binarize=True, **short)
""",
    ),
    Mistake(
        "A share of the data to hold out",
        "fit(p, q, table, validation=0.1, **short)",
        "TypeError",
        ("validation must be held-out data", "0.1", "x[4:], validation=x[:4]"),
        "fit(p, q, table[4:], validation=table[:4], **short)",
    ),
    Mistake(
        "A number as a schedule",
        "fit(p, q, table, schedules={'beta': 0.5}, **short)",
        "TypeError",
        ("schedules['beta'] must be a function of the step", "0.5"),
        "fit(p, q, table, schedules={'beta': lambda step: 0.5}, **short)",
    ),
    Mistake(
        "A scheduler of torch as a schedule",
        "fit(p, q, table, schedules={'lr': torch.optim.lr_scheduler.StepLR}, **short)",
        "TypeError",
        ("schedules['lr'] must be a function of the step", "StepLR"),
        "fit(p, q, table, schedules={'lr': lambda step: 1e-3 * 0.5 ** (step // 100)}, **short)",
    ),
    Mistake(
        "A schedule of a misspelt name",
        "fit(p, q, table, schedules={'betta': lambda step: 0.5}, **short)",
        "ValueError",
        ("schedules has 'betta'", "ELBO", "did you mean 'beta'?"),
        "fit(p, q, table, schedules={'beta': lambda step: 0.5}, **short)",
    ),
    Mistake(
        "A device that torch does not know",
        "fit(p, q, table, device='gpu', **short)",
        "ValueError",
        ("device", "'gpu'", "'cuda'", "'auto'"),
        "fit(p, q, table, device='auto', **short)",
    ),
    Mistake(
        "A network of a discriminator for another number of columns",
        """
p = models.GAN(p.prior, Deterministic(MLP(2, [16]), 6))
game = infer.Adversarial(Discriminator(MLP(7, [16])))
fit(p, data=table, loss=game, **short)
""",
        "InputError",
        ("discriminator(x) got x of shape (20, 6)", "shape (*, 7)"),
        """
p = models.GAN(p.prior, Deterministic(MLP(2, [16]), 6))
game = infer.Adversarial(Discriminator(MLP(6, [16])))
fit(p, data=table, loss=game, **short)
""",
    ),
    Mistake(
        "A GAN without a game",
        """
p = models.GAN(p.prior, Deterministic(MLP(2, [16]), 6))
fit(p, data=table, **short)
""",
        "PairError",
        ("guide is None", "models.GAN", "['z']", "no likelihood", "loss=Adversarial"),
        """
p = models.GAN(p.prior, Deterministic(MLP(2, [16]), 6))
game = infer.Adversarial(Discriminator(MLP(6, [16])))
fit(p, data=table, loss=game, **short)
""",
    ),
    Mistake(
        "A bound of Pyro that compiles itself",
        "fit(p, q, table, loss=pyro.infer.JitTrace_ELBO(), **short)",
        "TypeError",
        ("JitTrace_ELBO", "pyro.infer.Trace_ELBO()", "compile=True"),
        "fit(p, q, table, loss=pyro.infer.Trace_ELBO(), **short)",
    ),
    Mistake(
        "A bound of Pyro with too few dimensions for the plates",
        """
from pyro.infer import TraceEnum_ELBO

fit(p, q, table, loss=TraceEnum_ELBO(max_plate_nesting=0), **short)
""",
        "PairError",
        ("TraceEnum_ELBO", '"z"', "max_plate_nesting to at least 1"),
    ),
]

EVALUATION = [
    Mistake(
        "The code of a single row",
        "evaluate.embed(q, table[0])",
        "InputError",
        ("x has shape (6,)", "one row", "x[None]"),
        "evaluate.embed(q, table[0][None])",
    ),
    Mistake(
        "The codes of a variable of all data",
        """
def guide(x):
    scale = pyro.sample("scale", dist.LogNormal(x.mean(), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, scale[..., None]).to_event(1))

evaluate.embed(guide, table, site="scale")
""",
        "PairError",
        ("guide draws 'scale' once for all data", "site=...", "pyro.plate('data', len(x))"),
        """
def guide(x):
    scale = pyro.sample("scale", dist.LogNormal(x.mean(), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, scale[..., None]).to_event(1))

evaluate.embed(guide, table, site="z")
""",
    ),
    Mistake(
        "The decoded data of a single code",
        "evaluate.decode(p, torch.zeros(2))",
        "InputError",
        ("z has shape (2,)", "one code", "z[None]"),
        "evaluate.decode(p, torch.zeros(2)[None])",
    ),
    Mistake(
        "Codes of another size",
        "evaluate.decode(p, torch.zeros(3, 5))",
        "InputError",
        ("z has shape (3, 5)", "codes of shape (2,)", "give z of shape (N, 2)"),
        "evaluate.decode(p, torch.zeros(3, 2))",
    ),
    Mistake(
        "No particles",
        "evaluate.log_likelihood(p, q, table, num_particles=0)",
        "ValueError",
        ("num_particles must be at least 1", "got 0"),
        "evaluate.log_likelihood(p, q, table, num_particles=1)",
    ),
    Mistake(
        "A number of samples that is no number",
        "evaluate.sample(p, table)",
        "TypeError",
        ("num_samples must be a whole number", "a tensor of shape (40, 6)"),
        "evaluate.sample(p, len(table))",
    ),
    Mistake(
        "A folder that does not exist",
        "load_run('runs/digits')",
        "RunError",
        ("runs/digits", "config.json", "is it a run folder?"),
    ),
    Mistake(
        "A folder that holds a run already",
        """
fit(p, q, table, folder="runs/a", **short)
fit(p, q, table, folder="runs/a", **short)
""",
        "RunError",
        ("runs/a holds a run already", "resume=True", "overwrite=True"),
        """
fit(p, q, table, folder="runs/a", **short)
fit(p, q, table, folder=Run("runs/a", overwrite=True), **short)
""",
    ),
    Mistake(
        "A file in the place of a run folder",
        """
torch.save(p.state_dict(), "weights.pt")
load_run("weights.pt")
""",
        "RunError",
        ("weights.pt", "is it a run folder?"),
        """
fit(p, q, table, folder="runs/a", **short)
load_run("runs/a")
""",
    ),
    Mistake(
        "A run of another version",
        """
from pathlib import Path

fit(p, q, table, folder="runs/a", **short)
config = Path("runs/a/config.json")
config.write_text(config.read_text().replace('"format": 2', '"format": 3'))
load_run("runs/a")
""",
        "RunError",
        ("runs/a has format 3", "reads format 2", "the version that has written it"),
    ),
    Mistake(
        "A run that is resumed with another pair",
        """
fit(p, q, table, folder="runs/a", **short)
p, q = vae(dist.Normal, table, latent=3)
fit(p, q, table, folder=Run("runs/a", resume=True), **short)
""",
        "RunError",
        ("runs/a holds a run of another model", "load_run"),
        """
fit(p, q, table, folder="runs/a", **short)
run = load_run("runs/a")
fit(run.model, run.guide, table, folder=Run("runs/a", resume=True), **short)
""",
    ),
    Mistake(
        "Labels of another number of rows in a picture",
        "plot.latents(q, table, labels=labels[:10])",
        "ValueError",
        ("labels must be one for each of the 40 codes", "(10,)"),
        "plot.latents(q, table, labels=labels)",
    ),
    Mistake(
        "A manifold of three latent units",
        """
p, q = vae(dist.Bernoulli, pixels, latent=3)
plot.manifold(p)
""",
        "ValueError",
        ("two dimensions", "one of 3", "take traversal"),
        """
p, q = vae(dist.Bernoulli, pixels, latent=3)
plot.traversal(p)
""",
    ),
    Mistake(
        "The picture of a history that is none",
        "plot.curves(p)",
        "TypeError",
        ("history must be a History, as fit returns it", "VAE"),
        "plot.curves(fit(p, q, table, **short))",
    ),
]

CHAPTERS = {
    "Data": DATA,
    "Model and guide": PAIRS,
    "Programs of your own": PROGRAMS,
    "Training": TRAINING,
    "Evaluation, runs and pictures": EVALUATION,
}

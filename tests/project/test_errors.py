"""Messages for bad input: ``docs/errors.md`` shows them, word for word.

``python tests/project/test_errors.py`` writes the file anew.
"""

import ast
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import tarspyro
from tarspyro import Conditional, data, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

FILE = Path(__file__).parents[2] / "docs" / "errors.md"

HEAD = """# Error messages

Every call below raises the error beside it. In the calls, `p` and `q` are a `VAE` and its guide, `x` are images of 64
black and white pixels, `y` are labels, and `encoder` and `decoder` are the conditional distributions of the pair.

An argument of the wrong type raises a `TypeError`, a value out of range a `ValueError`. Two kinds of `ValueError` have
names: `InputError` for data that does not fit the likelihood, and `PairError` for a model and a guide that do not match.
Unusable files raise a `RunError` or a `DataError`, both kinds of `OSError`. A family without a required closed form
raises a `NotImplementedError`. [Mistakes of beginners](mistakes.md) shows longer examples, with what works.
"""

CASES = {
    "Networks": [
        "MLP(-1, [4])",
        "MLP(64, 4)",
        "MLP(64, [4, 0])",
        "MLP(64, [4], activation=nn.ReLU())",
        "MLP(64, [4], dropout=1.5)",
        "MLP(64, [4])(x[:, :50])",
        "MLP(64, [4])(x.numpy())",
        "MLP(64, [4])(x.long())",
        "ConvEncoder((8, 8))",
        "ConvEncoder((1, 8, 8), [8, 8, 8, 8])",
        "ConvEncoder((1, 8, 8), 16)",
        "ConvDecoder(2, (1, 8, 8), [])",
        "UNet(2.5, (1, 8, 8))",
        "AttentionRead(4, (1, 8, 8), size=0)",
        "Recurrence(nn.Linear(2, 4))",
        "Recurrence(nn.GRUCell(2, 4)).initial(-1)",
        "ConvLSTMCell(1, (2, 8, 8), kernel_size=2)",
        "Canvas(nn.GRUCell(2, 4), nn.Linear(4, 64))",
        "Backward(nn.Linear(2, 3))",
        "MADE(64, [4], order='zigzag')",
        "MADE(64, [4], order=torch.arange(3))",
        "PixelCNN(64)",
        "PixelCNN((1, 8, 8), kernel_size=4)",
        "CausalConv1d((1, 8, 8))",
        "CausalRNN(64, cell=nn.GRUCell)",
        "Codebook(1, 2)",
        "Discriminator(MLP)",
        "RandomWeights('MLP')",
        "MaskingNoise(2)",
    ],
    "Conditional distributions and priors": [
        "Conditional('Normal', MLP(2, [4]), 64)",
        "Conditional(dist.Normal, [64, 4], 2)",
        "Conditional(dist.Normal, MLP(64, [4]), -2)",
        "Conditional(dist.Normal, MLP(64, [4]), '2')",
        "Conditional(dist.Normal, MLP(64, [4]), 2, sigma=0.1)",
        "Conditional(dist.Normal, MLP(64, [4]), 2, scale=-0.1)",
        "Conditional(dist.Normal, MLP(64, [4]), 2, scale=torch.ones(3))",
        "Conditional(dist.Normal, MLP(64, [4]), 2, transforms={'scale': 'softplus'})",
        "Conditional(dist.Uniform, MLP(64, [4]), 2)",
        "Conditional(dist.Categorical, MLP(64, [4]), ())",
        "Conditional(dist.Dirichlet, MLP(64, [4]), ())",
        "Autoregressive(dist.Bernoulli, MADE(64, [4]), 63)",
        "Autoregressive(dist.Bernoulli, MADE(64, [4]), 64, order=torch.arange(64))",
        "Autoregressive(dist.OneHotCategorical, MADE((8, 8), [4]), (8, 8))",
        "Autoregressive(dist.Normal, nn.RNN(64, 4), (8, 64))()",
        "VectorQuantized(MLP(64, [4]), Codebook(8, 2), (3, 2))",
        "encoder(x[:, :50])",
        "encoder(x, x)",
        "encoder.log_prob(torch.zeros(8, 3), x)",
        "encoder.kl(default_prior(dist.Normal, 3), x)",
        "Deterministic(MLP(64, [4]), 2, transform=3)",
        "Blocks()",
        "Transformed(dist.Normal(0.0, 1.0), [3])",
        "Prior(dist.Normal, 2, loc=torch.zeros(3), scale=1.0)",
        "default_prior(dist.Uniform, 2)",
        "VampPrior(encoder, x[:0])",
    ],
    "Distributions": [
        "Gamma('a', 1.0)",
        "Gamma(torch.ones(2), torch.ones(3))",
        "Gamma(torch.tensor([1, 2]), 1.0)",
        "Gamma(1.0, 1.0, boost=-1)",
        "Dirichlet(torch.tensor(1.0))",
        "GumbelSoftmax(temperature=0.5)",
        "GumbelSoftmax(torch.zeros(3), score='both')",
        "StickBreaking(torch.ones(3))",
        "MixtureOfExperts([dist.Gamma(1.0, 1.0)])",
    ],
    "Bounds and games": [
        "ELBO(num_particles=0)",
        "ELBO(num_particles=2.5)",
        "ELBO(beta=-1)",
        "ELBO(gradient='dreg')",
        "IWAE(5, gradient='stl')",
        "IWAE(5, chunk_size=0)",
        "Renyi(math.nan)",
        "FIVO(4, threshold=2)",
        "Compiled(3)",
        "Adversarial(MLP)",
        "Adversarial(Discriminator(MLP(64, [4])), every=0)",
        "WAE(weight='large')",
        "ModalitySubsets(ELBO(), num_subsets=-1)",
        "FIVO(2).loss(p, q, x)",
    ],
    "Models and guides": [
        "models.VAE(dist.Normal, decoder)",
        "models.VAE(default_prior(dist.Normal, 2), 64)",
        "guides.VAE(None)",
        "p(batch_size=0)",
        "p(x.numpy())",
        "models.HierarchicalVAE(default_prior(dist.Normal, 2), encoder, decoder)",
        "models.ConditionalVAE(default_prior(dist.Normal, 2), decoder)()",
        "models.CMMA(default_prior(dist.Normal, 2), decoder)",
        "models.VRNN(decoder, default_prior(dist.Normal, 2), decoder)",
        "models.BayesianRegression(default_prior(dist.Normal, 2), decoder, num_data=0)",
    ],
    "Training": [
        "fit(p, q, x[:, :50])",
        "fit(p, q, x * 255)",
        "fit(p, q, x * 0.5)",
        "fit(p, q, x / 0)",
        "fit(p, q, x[:0])",
        "fit(p, q, y)",
        "fit(p, q, (x, y))",
        "fit(p, q, {'images': x})",
        "fit(p, q, 'x')",
        "fit(p, q, torch.tensor(1.0))",
        "fit(p, q, x + 0j)",
        "fit(p, 3, x)",
        "fit(p, q, x, epochs=0)",
        "fit(p, q, x, epochs=1.5)",
        "fit(p, q, x, batch_size='all')",
        "fit(p, q, x, loss=ELBO)",
        "fit(p, q, x, optimizer='adam')",
        "fit(p, q, x, lr=-1, progress=False)",
        "fit(p, q, x, optimizer=Optimizer(generator={'lr': 1e-3}), progress=False)",
        "fit(p, q, x, schedules={'lr': 0.1})",
        "fit(p, q, x, optimizer=Optimizer(clip_norm=0))",
        "fit(p, q, x, learning_rate=1e-3)",
        "fit(p, q, x, device='meta')",
        "fit(p, q, x, seed='zero')",
        "fit(p, q, x, autocast=torch.float64)",
        "fit(p, q, x, autocast=torch.float16)",
        "fit(p, q, x, loss=pyro.infer.JitTrace_ELBO())",
        "fit(p, q, x, loss=pyro.infer.TraceTailAdaptive_ELBO())",
        "fit(p, q, data.Stream(x, 3))",
        "fit(p, q, iter([x]))",
        "fit(p, q, x, folder=Run('runs/a', resume='yes'))",
        "load_run('no such run')",
        "load_run('no such run', 'newest')",
    ],
    "Evaluation": [
        "embed(q, x, site='w')",
        "embed(q, x, num_samples=0)",
        "embed(q, iter([x]))",
        "evaluate.log_likelihood(p, q, x, num_particles=0)",
        "evaluate.log_likelihood(p, q, x, num_particles=1, errors=True)",
        "evaluate.log_likelihood(p, q, x[0])",
        "evaluate.conditional_log_likelihood(p, q, x, y)",
        "evaluate.sample(p, 0)",
        "evaluate.sample(p, 3, site='w')",
        "evaluate.sample(p, 3, given={'y': y})",
        "evaluate.sample(q, 3)",
        "evaluate.decode(p, torch.zeros(3, 5))",
        "evaluate.decode(p, 'z')",
        "evaluate.gaps(p, q, x, lr=0)",
        "evaluate.log_densities(p, q, x, {'w': torch.zeros(8, 5, 2)})",
        "evaluate.impute(p, q, x, x[:, :3])",
        "evaluate.nearest_neighbours(q, x, x, num=9)",
        "evaluate.knn_accuracy(x, y[:3], x, y)",
        "evaluate.auroc([0.1, 0.2], [1, 1])",
        "evaluate.frechet_distance(x, x[:1])",
        "evaluate.classify(q, x)",
    ],
    "Pictures": [
        "plot.latents(q, x, method='mds')",
        "plot.latents(q, x, labels=y[:3])",
        "plot.manifold(p, num=0)",
        "plot.manifold(p, num=3, image_shape=(7, 7))",
        "plot.interpolation(p, q, x[0], x[1])",
        "plot.interpolation(p, q, x[:2], x[:3])",
        "plot.traversal(p, units=[7])",
        "plot.neighbours(q, x[0], x)",
        "plot.curves(3)",
        "plot.samples(p, num=4, ax=3)",
        "plot.graph(3)",
    ],
    "Data": [
        "data.mnist(validation=60_000)",
        "data.uci('boston')",
        "data.polyphonic_music('jsb')",
        "data.quadrants(x[:, :50], 1)",
        "data.lower_half(x, image_shape=(3, 3))",
        "data.ring(0)",
        "data.Split(x).one_hot()",
        "data.Split(x, y).reshape(1, 7, 7)",
        "data.Sequences.padded([torch.zeros(3, 2), torch.zeros(3, 4)])",
        "data.labelled_subset(data.digits().train, 7)",
    ],
}


X, Y = data.digits().train.x[:8].round(), data.digits().train.y[:8]
PUBLIC = (tarspyro, tarspyro.distributions, tarspyro.infer, tarspyro.nn)
NAMES = {name: getattr(module, name) for module in PUBLIC for name in module.__all__}
NAMES |= {"math": math, "dist": dist, "torch": torch, "nn": torch.nn, "pyro": pyro}


def sentence(call):
    """Returns the name of the error that a call raises, and its message."""
    torch.manual_seed(0)
    decoder, encoder = (
        Conditional(dist.Bernoulli, MLP(2, [4]), 64),
        Conditional(dist.Normal, MLP(64, [4]), 2),
    )
    p, q = models.VAE(default_prior(dist.Normal, 2), decoder), guides.VAE(encoder)
    names = {"x": X, "y": Y, "p": p, "q": q, "encoder": encoder, "decoder": decoder}
    try:
        eval(call, {**NAMES, **names})
    except Exception as error:
        return type(error).__name__, str(error)
    raise AssertionError(f"{call} works")


def render():
    """Returns the page."""
    lines = [HEAD]
    for title, calls in CASES.items():
        lines += [f"## {title}\n", "| call | error | message |", "|---|---|---|"]
        for call in calls:
            kind, text = sentence(call)
            lines.append(f"| `{call}` | `{kind}` | {text.replace('|', chr(92) + '|')} |")
        lines.append("")
    return "\n".join(lines).replace("<", "&lt;")


@pytest.mark.parametrize("call", [call for calls in CASES.values() for call in calls])
def test_bad_input_gets_one_sentence(call):
    kind, text = sentence(call)
    assert kind in {"ValueError", "TypeError", "InputError", "PairError", "RunError"}
    # One sentence on one line.
    assert (
        "\n" not in text
        and 20 < len(text) < 400
        and ". " not in text.replace("...", "").replace("arXiv. ", "")
    )
    assert text[-1] in ".?" or "do not run on data" in text or "does not run on data" in text


def keywords(call):
    """Returns the names of the keyword arguments in a call."""
    nodes = ast.walk(ast.parse(call))
    return [node.arg for node in nodes if isinstance(node, ast.keyword)]


@pytest.mark.parametrize("call", list(filter(keywords, sum(CASES.values(), []))))
def test_the_message_names_the_argument(call):
    _, text = sentence(call)
    assert any(name in text for name in keywords(call)) or "must be given" in text


def test_the_page_shows_the_messages_of_the_library():
    assert FILE.read_text() == render()


if __name__ == "__main__":
    with pyro.validation_enabled(True):
        FILE.write_text(render())

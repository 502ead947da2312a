"""Interoperability with Pyro's inference and inspection, torch's loaders, Lightning and
TensorBoard.
"""

import importlib.util
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.infer.inspect import get_model_relations
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tarspyro import (
    Conditional,
    Run,
    StochasticModule,
    TensorBoard,
    evaluate,
    fit,
    guides,
    initialize_from_data,
    models,
)
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE, Renyi
from tarspyro.nn import MLP, Recurrence

from ..programs import assert_within


def needs(package):
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"needs {package}, which is not installed")


def pair(seed=0):
    torch.manual_seed(seed)
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [16]), 64)
    )
    return model, guides.VAE(Conditional(dist.Normal, MLP(64, [16]), 2))


def weights(*programs):
    return [p.detach().clone() for program in programs for p in program.parameters()]


@pytest.fixture(scope="module")
def x():
    return digits().train.x[:200].round()


# Pyro's SVI, and autoguides.


@pytest.mark.parametrize(
    "loss",
    [
        ELBO,
        lambda: IWAE(3),
        lambda: IWAE(3, gradient="dreg"),
        lambda: Renyi(0.5, 3),
        Trace_ELBO,
        TraceMeanField_ELBO,
    ],
    ids="ELBO IWAE dreg Renyi Trace_ELBO TraceMeanField_ELBO".split(),
)
def test_svi_trains_as_fit_does(loss, x):
    """Both use the same draws; fit's loss is divided by the rows of a batch, and so is SVI's learning
    rate.
    """
    ours, theirs = pair(), pair()
    for halves in (ours, theirs):
        initialize_from_data(*halves, x)
    sgd = {"optimizer": torch.optim.SGD, "lr": 0.05}
    history = fit(
        *ours,
        x,
        loss=loss(),
        epochs=2,
        batch_size=50,
        shuffle=False,
        seed=0,
        progress=False,
        **sgd,
    )
    svi = SVI(*theirs, pyro.optim.SGD({"lr": 0.05 / 50}), loss())
    torch.manual_seed(0)
    torch.randint(2**62, ())  # the draw that seeds the order of the data
    losses = [svi.step(batch) / 50 for _ in range(2) for batch in x.split(50)]
    assert history.step_losses == pytest.approx(losses, rel=1e-5)
    for a, b in zip(weights(*ours), weights(*theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class LinearGaussian(StochasticModule):
    """z ~ N(0, I), x | z ~ N(Wz, s^2 I), whose posterior is known."""

    def __init__(self, weight, scale):
        super().__init__()
        self.scale = scale
        self.register_buffer("weight", weight)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, self.scale).to_event(1), obs=x)


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDiagonalNormal])
def test_an_autoguide_of_the_data_points_own_latent_variables(autoguide):
    """With orthogonal columns the posterior factorizes, so that these guides can be exact."""
    torch.manual_seed(0)
    weight, scale = torch.linalg.qr(torch.randn(5, 2))[0] * 2, 1.0
    x = torch.randn(6, 5)
    model = LinearGaussian(weight, scale)
    guide = autoguide(model)
    # Sticking the landing: without noise at the optimum.
    loss, options = ELBO(gradient="stl"), {"lr": 0.02}
    fit(
        model,
        guide,
        x,
        loss=loss,
        epochs=600,
        batch_size=6,
        shuffle=False,
        seed=0,
        progress=False,
        **options,
    )
    # V = (I + W'W / s^2)^{-1} = I / 5, and the mean V W'x / s^2
    torch.testing.assert_close(guide.median(x)["z"], x @ weight / 5, rtol=0.0, atol=1e-3)
    quantiles = guide.quantiles([0.5, 0.8413447], x)["z"]
    torch.testing.assert_close(
        quantiles[1] - quantiles[0], torch.full((6, 2), 0.2**0.5), rtol=2e-3, atol=0.0
    )


class Mixture(nn.Module):
    """Two Gaussians whose component is summed out: no bound draws anything."""

    def __init__(self):
        super().__init__()
        self.logits, self.locs = (
            nn.Parameter(torch.zeros(2)),
            nn.Parameter(torch.tensor([-1.0, 0.5])),
        )
        self.posterior = nn.Linear(1, 2)

    def model(self, x):
        pyro.module("mixture", self)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=self.logits))
            pyro.sample("x", dist.Normal(self.locs[k], 1.0), obs=x)

    @config_enumerate
    def guide(self, x):
        pyro.module("mixture", self)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=self.posterior(x.unsqueeze(-1))))


def test_pyro_s_enumerating_bound_trains_as_ours():
    x = torch.cat([torch.randn(50) - 3, torch.randn(50) + 3])
    losses = []
    for loss in (TraceEnum_ELBO(max_plate_nesting=1), ELBO()):
        pyro.clear_param_store()
        torch.manual_seed(1)
        mixture = Mixture()
        options = {
            "lr": 0.1,
            "batch_size": 50,
            "epochs": 10,
            "seed": 0,
            "progress": False,
        }
        losses.append(fit(mixture.model, mixture.guide, x, loss=loss, **options).step_losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][-1] < losses[0][0] - 1


# Predictive, and the graph that pyro.render_model draws.


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_from_the_posterior(parallel, x):
    model, guide = pair()
    predictive = Predictive(
        model, guide=guide, num_samples=400, return_sites=("z", "x"), parallel=parallel
    )
    draws = predictive(x[:3])
    z = draws["z"].detach().reshape(400, 3, 2)
    assert_within(z, evaluate.embed(guide, x[:3]))
    torch.testing.assert_close(
        draws["x"].reshape(400, 3, 64), x[:3].expand(400, 3, 64)
    )  # observed


def hierarchy():
    p = models.HierarchicalVAE(
        default_prior(dist.Normal, 2),
        [Conditional(dist.Normal, MLP(2, [4]), 3)],
        Conditional(dist.Bernoulli, MLP(3, [4]), 6),
    )
    return p, (torch.zeros(4, 6),)


def conditional():
    p = models.ConditionalVAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP([2, 3], [4]), 6)
    )
    return p, (torch.zeros(4, 6), torch.zeros(4, 3))


def recurrent():
    cell = Recurrence(nn.GRUCell(6 + 2, 4))
    p = models.VRNN(
        cell,
        Conditional(dist.Normal, MLP(4, [4]), 2),
        Conditional(dist.Bernoulli, MLP([2, 4], [4]), 6),
    )
    return p, (torch.zeros(4, 2, 6),)


def plain():
    return pair()[0], (torch.zeros(4, 64),)


@pytest.mark.parametrize(
    "make, graph",
    [
        (plain, {"z": [], "x": ["z"]}),
        (conditional, {"z": [], "x": ["z"]}),
        (hierarchy, {"z_2": [], "z_1": ["z_2"], "x": ["z_1"]}),
        (
            recurrent,
            {"z_0": [], "x_0": ["z_0"], "z_1": ["x_0", "z_0"], "x_1": ["x_0", "z_0", "z_1"]},
        ),
    ],
    ids="VAE ConditionalVAE HierarchicalVAE VRNN".split(),
)
def test_the_graph_that_pyro_renders(make, graph):
    model, arguments = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pyro's own
        relations = get_model_relations(model, model_args=arguments)
    assert {
        name: sorted(parents) for name, parents in relations["sample_sample"].items()
    } == graph
    assert {
        site for sites in relations["plate_sample"].values() for site in sites
    } == graph.keys()
    assert set(relations["observed"]) == {name for name in graph if name.startswith("x")}


# Loaders, Lightning, TensorBoard.


def test_workers_of_a_loader_change_nothing(x):
    results = []
    for workers in ({}, {"num_workers": 2, "multiprocessing_context": "fork"}):
        trained = pair()
        loader = DataLoader(TensorDataset(x), batch_size=50, shuffle=True, **workers)
        history = fit(*trained, loader, epochs=2, seed=0, progress=False)
        results.append((history.step_losses, weights(*trained)))
    assert results[0][0] == results[1][0] and len(results[0][0]) == 8
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@needs("lightning")
@pytest.mark.filterwarnings("ignore")  # Lightning's advice, and deprecations inside it
def test_a_lightning_module_takes_the_same_steps(x):
    import lightning

    class Pair(lightning.LightningModule):
        def __init__(self, model, guide):
            super().__init__()
            self.loss = ELBO()(model, guide)
            self.losses = []

        def training_step(self, batch):
            loss = self.loss(*batch) / len(batch[0])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    theirs, by_hand = Pair(*pair()), Pair(*pair())
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=2, **quiet)
    torch.manual_seed(0)
    loader = DataLoader(
        TensorDataset(x), batch_size=50, generator=torch.Generator()
    )  # it draws in every pass
    trainer.fit(theirs, loader)
    optimizer = by_hand.configure_optimizers()
    torch.manual_seed(0)
    for batch in [*loader, *loader]:
        optimizer.zero_grad()
        by_hand.training_step(batch).backward()
        optimizer.step()
    assert len(theirs.losses) == 8 and theirs.losses == by_hand.losses
    assert all(
        torch.equal(a, b)
        for a, b in zip(theirs.parameters(), by_hand.parameters(), strict=True)
    )
    assert len(list(theirs.parameters())) == len(weights(*pair()))


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of protobuf
def test_tensorboard_shows_the_history(x, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume, epochs in ((False, 2), (True, 3)):
        where = {"folder": Run(tmp_path / "run", resume=resume)}
        history = fit(
            *pair(),
            x,
            epochs=epochs,
            validation=x[:50],
            seed=0,
            progress=False,
            callback=TensorBoard(tmp_path),
            **where,
        )
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == history.rows[0].keys() - {"epoch"}
    for name in ("elbo", "kl", "validation_loss"):
        curve = events.Scalars(name)
        assert [point.step for point in curve] == [1, 2, 3]
        assert [point.value for point in curve] == pytest.approx(history[name], rel=1e-6)


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs a package .* pip install tarspyro\[tensorboard\]"
    ):
        TensorBoard(tmp_path)

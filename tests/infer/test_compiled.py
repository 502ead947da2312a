"""Compiled steps: the gradients and the law of the eager ones, for every bound, sampler and
pair.
"""

import contextlib
import json
import math
import time
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Conditional, distributions, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.infer import CIWAE, ELBO, IWAE, PIWAE, Compiled, PairError, RecordingError, Renyi
from tarspyro.infer.compilation.graphs import count_products
from tarspyro.infer.compilation.recording import record, record_as_it_stands
from tarspyro.modules import StochasticModule
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder
from tarspyro.scopes import local_parameters

BOUNDS = {
    "ELBO": ELBO,
    "ELBO, 3 particles": lambda: ELBO(3),
    "ELBO, sampled": lambda: ELBO(analytic_kl=False),
    "ELBO, free bits": lambda: ELBO(free_bits=0.1),
    "IWAE": lambda: IWAE(3),
    "IWAE, groups": lambda: IWAE(3, 2),
    "Renyi": lambda: Renyi(0.5, 3),
    "VR-max": lambda: Renyi(-math.inf, 3),
    "CIWAE": lambda: CIWAE(0.3, 3),
    "IWAE, one by one": lambda: IWAE(2, vectorize_particles=False),
}
REPARAMETERIZED = {
    "ELBO, stl": lambda: ELBO(gradient="stl"),
    "IWAE, dreg": lambda: IWAE(3, gradient="dreg"),
    "PIWAE": lambda: PIWAE(2, 2),
}
FAMILIES = [
    "Normal",
    "MultivariateNormal",
    "Laplace",
    "Gamma",
    "Beta",
    "Dirichlet",
    "GumbelSoftmax",
    "Kumaraswamy",
]
PARTLY = ("Gamma", "Beta", "Dirichlet")


def pair(family="Normal", likelihood=dist.Bernoulli, latent=3, **how):
    family = getattr(distributions, family, None) or getattr(dist, family)
    p = models.VAE(
        default_prior(family, latent), Conditional(likelihood, MLP(latent, [8], **how), 64)
    )
    return p, guides.VAE(Conditional(family, MLP(64, [8], **how), latent))


def buffers_of(*halves):
    return [
        buffer for half in halves if isinstance(half, nn.Module) for buffer in half.buffers()
    ]


def count_recordings(lines):
    """How many steps were compiled, as the lines of ``report`` tell."""
    return sum(line.startswith("compiling the step") for line in lines)


def assert_same_step(bound, p, q, *args):
    """The graph, run operation by operation with the noise of the eager step, gives its loss
    and gradients.
    """
    with local_parameters(), pyro.validation_enabled(False):
        bound.prepare(p, q, args, {})
        recording = record(
            lambda *args: bound.loss_and_terms(p, q, *args), args, buffers=buffers_of(p, q)
        )
        torch.manual_seed(0)
        loss, terms = bound.loss_and_terms(p, q, *args)
        gradients = torch.autograd.grad(loss, recording.parameters)
    torch.manual_seed(0)
    with torch.no_grad():
        recorded, named, derivatives = recording(*args)
    torch.testing.assert_close(recorded, loss.detach())
    assert named.keys() == terms.keys()
    for name in terms:
        torch.testing.assert_close(named[name], terms[name])
    for one, other in zip(derivatives, gradients, strict=True):
        scale = other.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(one / scale, other / scale, atol=1e-5, rtol=0)
        assert not one.requires_grad
    held = {
        id(parameter)
        for half in (p, q)
        if isinstance(half, nn.Module)
        for parameter in half.parameters()
    }
    assert held == {id(parameter) for parameter in recording.parameters}


@pytest.mark.parametrize(
    ("bound", "family"),
    [
        (bound, family)
        for bound in (*BOUNDS, *REPARAMETERIZED)
        for family in FAMILIES
        if family in ("Normal", "Dirichlet") or bound in ("ELBO", "IWAE, dreg")
    ],
)
def test_recorded_steps_are_the_eager_ones(bound, family):
    torch.manual_seed(0)
    p, q = pair(family)
    partly = (
        bound in REPARAMETERIZED and family in PARTLY
    )  # these gradients are for wholly reparameterized draws
    with (
        pytest.raises(PairError, match="reparameterized")
        if partly
        else contextlib.nullcontext()
    ):
        assert_same_step(
            {**BOUNDS, **REPARAMETERIZED}[bound](), p, q, torch.bernoulli(torch.rand(6, 64))
        )


@pytest.mark.parametrize(
    "sampler", [{"boost": 8}, {"reparameterization": "implicit"}], ids=str
)
@pytest.mark.parametrize("family", PARTLY)
def test_samplers_of_every_kind(family, sampler):
    torch.manual_seed(0)
    family = getattr(distributions, family)
    p = models.VAE(default_prior(family, 3), Conditional(dist.Bernoulli, MLP(3, [8]), 64))
    q = guides.VAE(Conditional(family, MLP(64, [8]), 3, **sampler))
    assert_same_step(IWAE(3), p, q, torch.bernoulli(torch.rand(6, 64)))


@pytest.mark.parametrize(
    "how", [{"normalization": nn.BatchNorm1d}, {"dropout": 0.5}], ids=["batch norm", "dropout"]
)
def test_layers_that_change_as_they_run(how):
    torch.manual_seed(0)
    p, q = pair(**how)
    assert_same_step(ELBO(), p, q, torch.bernoulli(torch.rand(6, 64)))
    before = [buffer.clone() for buffer in buffers_of(p, q)]
    with local_parameters():
        args = (torch.rand(6, 64).round(),)
        recording = record(
            lambda x: ELBO().loss_and_terms(p, q, x), args, buffers=buffers_of(p, q)
        )
    assert all(torch.equal(*both) for both in zip(before, buffers_of(p, q), strict=True))
    x = torch.rand(6, 64).round()
    first, second = (recording(x)[0].item() for _ in range(2))
    assert first != second  # fresh noise, fresh masks
    if "normalization" in how:
        assert (
            q.posterior.trunk.layers[1].num_batches_tracked == 4
        )  # one eager step and three recorded ones


def test_convolutions_and_the_other_pair():
    torch.manual_seed(0)
    x = torch.rand(6, 1, 8, 8).round()
    p = models.VAE(
        default_prior(dist.Normal, 2),
        Conditional(dist.Bernoulli, ConvDecoder(2, (1, 8, 8), [4]), (1, 8, 8)),
    )
    q = guides.VAE(Conditional(dist.Normal, ConvEncoder((1, 8, 8), [4]), 2))
    assert_same_step(IWAE(2), p, q, x)


class Recurrent(nn.Module):
    """A sequence model and its guide, which both run the same recurrence."""

    def __init__(self, cell=nn.GRUCell):
        super().__init__()
        self.cell, self.prior = cell(4 + 2, 8), nn.Linear(8, 4)
        self.encoder, self.decoder = nn.Linear(4 + 8, 4), nn.Linear(2 + 8, 4)

    def states(self, x):
        return x.new_zeros(len(x), 8)

    def normal(self, parameters):
        loc, log_scale = parameters.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def model(self, x):
        h = self.states(x)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", self.normal(self.prior(h)))
                logits = self.decoder(torch.cat([z, h], -1))
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=logits).to_event(1), obs=x[:, t])
                h = self.cell(torch.cat([x[:, t], z], -1), h)

    def guide(self, x):
        h = self.states(x)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                z = pyro.sample(
                    f"z_{t}", self.normal(self.encoder(torch.cat([x[:, t], h], -1)))
                )
                h = self.cell(torch.cat([x[:, t], z], -1), h)


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.RNNCell])
def test_a_recurrence_that_both_halves_run_is_computed_once(cell):
    torch.manual_seed(0)
    pair, x, bound = Recurrent(cell), torch.rand(5, 4, 4).round(), ELBO(analytic_kl=False)
    with pyro.validation_enabled(False):
        # A run of its own, as before every compilation.
        bound.structure(pair.model, pair.guide, x)
        recording = record(lambda x: bound.loss_and_terms(pair.model, pair.guide, x), (x,))
        torch.manual_seed(1)
        loss, _ = bound.loss_and_terms(pair.model, pair.guide, x)
        gradients = torch.autograd.grad(loss, recording.parameters)
    torch.manual_seed(1)
    with torch.no_grad():
        recorded, _, derivatives = recording(x)
    torch.testing.assert_close(recorded, loss.detach())
    for one, other in zip(derivatives, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # Three steps of the recurrence lead anywhere: two products each, forward, and at most four
    # backward.
    separate = record_as_it_stands(
        lambda x: bound.loss_and_terms(pair.model, pair.guide, x), (x,), []
    )
    assert count_products(recording.graph) <= count_products(separate.graph) - 6


def test_equal_operations_are_merged_where_that_is_right():
    counter, weight = torch.zeros(3), torch.randn(3, requires_grad=True)

    def twice(x):
        first, second = torch.dropout(x, 0.5, True), torch.dropout(x, 0.5, True)  # two draws
        same = (x @ weight) + (x @ weight)  # one product
        before = counter + 1
        counter.add_(1)
        after = counter + 1  # another value than before
        left, right = x * 2, x * 2
        left.add_(1)  # not seen by the other
        return same.sum() + (first - second).abs().sum() + (after - before).sum() + (
            left - right
        ).sum(), {}

    recording = record(twice, (torch.ones(4, 3),), buffers=[counter])
    products = [
        node
        for node in recording.graph.graph.nodes
        if "mv" in str(node.target) or "mm" in str(node.target)
    ]
    assert len(products) == 2  # forward, and its derivative
    torch.manual_seed(0)
    with torch.no_grad():
        loss, _, (gradient,) = recording(torch.ones(4, 3))
    assert counter.eq(1).all()
    torch.manual_seed(0)
    counter.zero_()
    exact = twice(torch.ones(4, 3))[0]
    torch.testing.assert_close(loss, exact.detach())
    torch.testing.assert_close(gradient, torch.full((3,), 8.0))


def test_functions_with_parameters_in_the_store():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: torch.tensor(0.0))
        scale = pyro.param(
            "scale", lambda: torch.tensor(1.0), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    pyro.clear_param_store()
    x = torch.full((100,), 3.0)
    svi = pyro.infer.SVI(
        model, guide, pyro.optim.Adam({"lr": 0.05}), Compiled(ELBO(), backend="aot_eager")
    )
    for _ in range(400):
        svi.step(x)
    assert (
        abs(pyro.param("loc").item() - 1.5) < 0.1
        and abs(pyro.param("scale").item() - 0.5**0.5) < 0.1
    )
    pyro.clear_param_store()  # other parameters under the same names: the old ones are trained no longer
    for _ in range(20):
        svi.step(x)
    assert 0.5 < pyro.param("loc").item() < 1.2
    pyro.clear_param_store()


def test_methods_of_a_module_are_recorded_once():
    """A bound method is a new object at every access, and its module's layers may change."""
    torch.manual_seed(0)
    pair, x = Recurrent(), torch.rand(5, 2, 4).round()
    lines = []
    compiled = Compiled(ELBO(), backend="eager", choose=False, report=lines.append)
    for _ in range(3):
        compiled.loss_and_grads(pair.model, pair.guide, x)
    assert count_recordings(lines) == 1
    pair.decoder = nn.Linear(2 + 8, 4)
    compiled.loss_and_grads(pair.model, pair.guide, x)
    assert count_recordings(lines) == 2
    assert pair.decoder.weight.grad is not None


def test_subsampled_plates_take_fresh_rows():
    x = torch.arange(100.0)
    seen = Compiled(ELBO(), backend="eager", choose=False)
    loc = nn.Parameter(torch.tensor(0.0))

    def model(x):
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            pyro.sample("z", dist.Normal(x[rows] / 2, 1.0))

    losses = {seen.loss_and_grads(model, guide, x) for _ in range(5)}
    assert len(losses) == 5


class Schedules:
    @staticmethod
    def run(**how):
        torch.manual_seed(0)
        p, q = pair()
        schedules = {
            "beta": lambda step: min(1.0, step / 10),
            "lr": lambda step: 1e-2 / (1 + step),
        }
        history = fit(
            p,
            q,
            digits().train.x[:250],
            epochs=4,
            binarize=True,
            schedules=schedules,
            seed=0,
            progress=False,
            **how,
        )
        return p, q, history


def test_training_with_schedules_and_a_short_last_batch_is_the_eager_one():
    """250 rows: every third batch is half as long; beta and the learning rate change with
    every step.
    """
    p, q, eager = Schedules.run()
    compiled_p, compiled_q, compiled = Schedules.run(
        loss=Compiled(ELBO(), backend="eager", choose=False)
    )
    for name in ("loss", "elbo", "kl"):
        torch.testing.assert_close(
            torch.tensor(compiled[name]), torch.tensor(eager[name]), rtol=1e-5, atol=1e-5
        )
    trained = (
        [*p.parameters(), *q.parameters()],
        [*compiled_p.parameters(), *compiled_q.parameters()],
    )
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_run_folder_names_the_bound_itself(tmp_path):
    folders = {name: tmp_path / name for name in ("eager", "compiled")}
    for name, loss in {
        "eager": ELBO(beta=0.5),
        "compiled": Compiled(ELBO(beta=0.5), backend="eager"),
    }.items():
        torch.manual_seed(0)
        fit(
            *pair(),
            digits().train.x[:100].round(),
            loss=loss,
            epochs=1,
            folder=folders[name],
            progress=False,
        )
    described = [
        json.loads((folder / "config.json").read_text())["loss"] for folder in folders.values()
    ]
    assert described[0] == described[1]


def test_what_changes_takes_effect():
    torch.manual_seed(0)
    bound = ELBO()
    compiled = Compiled(bound, backend="aot_eager", choose=False)
    x = torch.rand(6, 64).round()

    def both(p, q, x):
        values = []
        for loss in (compiled, bound):
            torch.manual_seed(1)
            for parameter in [*p.parameters(), *q.parameters()]:
                parameter.grad = None
            with local_parameters():
                value = loss.loss_and_grads(p, q, x)
            values.append((value, [each.grad for each in [*p.parameters(), *q.parameters()]]))
        (one, first), (other, second) = values
        assert one == pytest.approx(other, rel=1e-5)
        for gradient, expected in zip(first, second, strict=True):
            assert (gradient is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
        return one

    p, q = pair(dropout=0.5)
    start = both(p, q, x)
    bound.beta = 0.1
    assert both(p, q, x) < start
    bound.beta = 0.0
    both(p, q, x)
    both(p, q, x[:4])  # another shape
    both(*pair(), x)  # a second pair
    p.eval(), q.eval()
    both(p, q, x)  # another mode
    p.likelihood.heads["logits"] = nn.Linear(8, 64)
    both(p, q, x)  # a replaced layer
    with torch.no_grad():
        p.likelihood.heads["logits"].weight.mul_(2.0)
    both(p, q, x)  # a weight changed in place
    bound.num_particles = 3
    both(p, q, x)  # another attribute

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 8)
            self.factor = None
            self.lists = [1.0, {"gain": 1.0}]
            self.act = torch.relu
            self.shift = nn.Parameter(torch.ones(1))

        def forward(self, z):
            hidden = self.inner(z) * (1.0 if self.factor is None else self.factor)
            hidden = self.act(hidden) * self.lists[0] * self.lists[1]["gain"]
            return hidden + self.shift + getattr(self, "further", 0.0)

    trunk = Scaled()
    p.likelihood.trunk = trunk
    both(p, q, x)  # another trunk
    trunk.factor = 2.0
    both(p, q, x)  # a number in place of nothing
    trunk.shift = nn.Parameter(torch.ones(1))
    both(p, q, x)  # a parameter in place of an equal one
    trunk.shift.requires_grad_(False)
    both(p, q, x)  # a frozen parameter
    trunk.further = 1.0
    both(p, q, x)  # a further attribute
    trunk.lists[0] = 0.5
    both(p, q, x)  # another number in a list
    trunk.lists[1]["gain"] = 3.0
    both(p, q, x)  # and in a dictionary of it
    trunk.act = torch.tanh
    both(p, q, x)  # another function
    trunk.inner = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
    both(p, q, x)  # other modules


def test_gradients_of_the_differentiable_loss_add_up():
    torch.manual_seed(0)
    p, q = pair()
    x = torch.rand(6, 64).round()
    compiled = Compiled(ELBO(), backend="eager", choose=False)
    weight = q.posterior.heads["loc"].weight
    results = []
    with local_parameters():
        for loss in (compiled, ELBO()):
            torch.manual_seed(1)
            weight.grad = None
            (3 * loss.differentiable_loss(p, q, x) + (weight**2).sum()).backward()
            results.append(weight.grad.clone())
    torch.testing.assert_close(*results)


def test_a_program_that_reads_a_value_back_names_the_line():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            shift = 1.0 if z.sum() > 0 else 0.0  # here
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    loc = nn.Parameter(torch.tensor(0.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    x = torch.zeros(3)
    with pytest.raises(
        RecordingError,
        match=r"test_compiled.py, line \d+, reads a value back: shift = 1.0 if z.sum",
    ):
        Compiled(ELBO(), choose=False).loss_and_grads(model, guide, x)
    lenient = Compiled(ELBO(), choose=False, fallback=True)
    with pytest.warns(UserWarning, match="goes on eagerly"):
        lenient.loss_and_grads(model, guide, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lenient.loss_and_grads(model, guide, x)
    assert loc.grad is not None


def test_a_line_of_pyro_that_reads_a_value_is_not_blamed_on_the_program():
    """The density of this family of Pyro asks whether any value is missing."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.NanMaskedNormal(z, 1.0), obs=x)

    loc = nn.Parameter(torch.tensor(0.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    compiled = Compiled(ELBO(), backend="eager", choose=False)
    with pytest.raises(
        RecordingError, match=r"^No line of the program, but pyro/distributions/nanmasked\.py"
    ):
        compiled.loss_and_grads(model, guide, torch.zeros(3))


def compiler_of_steps_that(wait):
    """A compiler whose functions wait, and return what the graph did at first."""

    def compiler(graph, inputs, **options):
        results = graph(*inputs)
        return lambda *inputs: wait() or results

    return compiler


def work():
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass


def test_a_slower_step_is_left_aside(monkeypatch):
    torch.manual_seed(0)
    p, q = pair()
    x = torch.rand(6, 64).round()
    compiled = Compiled(ELBO())
    monkeypatch.setattr(torch._inductor, "standalone_compile", compiler_of_steps_that(work))
    with local_parameters(), pytest.warns(UserWarning, match="goes on eagerly") as caught:
        for _ in range(30):
            compiled.loss_and_grads(p, q, x)
    assert len(caught) == 1


def test_time_in_which_a_step_has_no_processor_does_not_count(monkeypatch):
    """A neighbour that takes the processor away says nothing about a step."""
    torch.manual_seed(0)
    p, q = pair()
    x = torch.rand(6, 64).round()
    compiled = Compiled(ELBO())
    wait = compiler_of_steps_that(lambda: time.sleep(0.05))
    monkeypatch.setattr(torch._inductor, "standalone_compile", wait)
    with local_parameters(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(30):
            compiled.loss_and_grads(p, q, x)


def test_a_promise_that_nothing_changes_is_trusted_while_it_holds():
    class Scaled(StochasticModule):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.factor * self.loc, 1.0).to_event(1), obs=x)

    model = Scaled()
    model.loc = nn.Parameter(torch.tensor([1.0, 2.0]))
    model.factor = 1.0
    x = torch.zeros(5, 2)

    def guide(x):
        pass

    compiled = Compiled(ELBO(), backend="eager", choose=False)
    once = 5 * (math.log(2 * math.pi) + 2.5)
    twice = 5 * (math.log(2 * math.pi) + 10.0)
    with local_parameters():
        compiled.loss_and_grads(model, guide, x)  # which is when it is recorded
        with compiled.unchanging():
            assert compiled.loss_and_grads(model, guide, x) == pytest.approx(once)
            model.factor = 2.0
            assert compiled.loss_and_grads(model, guide, x) == pytest.approx(once)
            assert compiled.loss_and_grads(model, guide, x[:4]) == pytest.approx(twice * 0.8)
        assert compiled.loss_and_grads(model, guide, x) == pytest.approx(twice)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_without_a_compiler_training_goes_on():
    torch.manual_seed(0)
    p, q = pair()
    missing = {"cpp.cxx": ("a-compiler-that-is-not-there",), "force_disable_caches": True}
    with torch._inductor.config.patch(missing), pytest.warns(UserWarning) as caught:
        history = fit(
            p, q, digits().train.x[:300], epochs=6, binarize=True, progress=False, compile=True
        )
    (message,) = [
        str(warning.message) for warning in caught if warning.category is UserWarning
    ]
    assert "cannot be compiled" in message and "goes on eagerly" in message
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.filterwarnings("ignore:Compiled, a step takes")  # on a busy machine
def test_a_further_shape_waits_until_it_has_cost_a_compilation():
    """The short last batch of an epoch is not worth as much as the others."""
    torch.manual_seed(0)
    p, q = pair()
    x = torch.rand(6, 64).round()
    lines = []
    compiled = Compiled(ELBO(), backend="eager", report=lines.append)
    with local_parameters():
        for _ in range(20):
            compiled.loss_and_grads(p, q, x)
        assert (
            "compiling the step for data of shape (6, 64)" in lines[0] and "took" in lines[1]
        )
        assert len(lines) < 3 or "pays after" in lines[2]
        compiled.last_compilation = 1e9
        for _ in range(20):
            compiled.loss_and_grads(p, q, x[:4])
        assert not any("(4, 64)" in line for line in lines)
        compiled.last_compilation = 0.0
        compiled.loss_and_grads(p, q, x[:4])
        assert any("(4, 64)" in line for line in lines)


def test_gradients_lie_in_memory_as_their_parameters_do():
    """Fused optimizers go through both in the order of memory, whatever their strides."""
    torch.manual_seed(0)
    x = torch.rand(6, 1, 8, 8).round()
    p = models.VAE(
        default_prior(dist.Normal, 2),
        Conditional(dist.Bernoulli, ConvDecoder(2, (1, 8, 8), [4, 4]), (1, 8, 8)),
    )
    q = guides.VAE(Conditional(dist.Normal, ConvEncoder((1, 8, 8), [4, 4]), 2))
    compiled = Compiled(ELBO(), backend="eager", choose=False)
    parameters = [*p.parameters(), *q.parameters()]
    with local_parameters():
        compiled.loss_and_grads(p, q, x)
        bound = ELBO()
        bound.prepare(p, q, (x,), {})
        recording = record(lambda x: bound.loss_and_terms(p, q, x), (x,))
        _, _, gradients = recording(x)
    assert any(
        g.stride() != w.stride() for g, w in zip(gradients, recording.parameters, strict=True)
    )
    assert all(parameter.grad.stride() == parameter.stride() for parameter in parameters)
    torch.manual_seed(1)
    before, gradient = (
        [w.detach().clone() for w in parameters],
        [w.grad.clone() for w in parameters],
    )
    torch.optim.SGD(parameters, lr=0.1, fused=True).step()
    for old, slope, new in zip(before, gradient, parameters, strict=True):
        torch.testing.assert_close(new, old - 0.1 * slope)


def test_other_losses_cannot_be_compiled():
    with pytest.raises(TypeError, match="one of tarspyro.infer"):
        Compiled(pyro.infer.Trace_ELBO())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("family", ["Normal", "Gamma"])
def test_inductor(family):
    """The compiler itself: the same law of the loss, and training goes on."""
    torch.manual_seed(0)
    p, q = pair(family, latent=2)
    x = torch.bernoulli(torch.rand(20, 64))
    compiled, eager = Compiled(ELBO(), choose=False), ELBO()
    with local_parameters():
        ours = torch.tensor([compiled.loss_and_grads(p, q, x) for _ in range(400)])
        theirs = torch.tensor([eager.loss(p, q, x) for _ in range(400)])
    error = ((ours.var() + theirs.var()) / 400).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 4 * error


@pytest.mark.parametrize("compiled", [False, True])
def test_networks_in_half_precision(compiled):
    """Under autocast the layers compute in bfloat16; draws, densities and parameters keep
    their precision.
    """
    torch.manual_seed(0)
    p, q = pair()
    types = []
    p.likelihood.trunk.register_forward_hook(
        lambda module, inputs, output: types.append((inputs[0].dtype, output.dtype))
    )
    loss = Compiled(ELBO(), backend="eager", choose=False) if compiled else ELBO()
    how = {"epochs": 5, "binarize": True, "seed": 0, "progress": False}
    history = fit(p, q, digits().train.x[:300], loss=loss, autocast=torch.bfloat16, **how)
    assert (torch.float32, torch.bfloat16) in types
    assert all(
        parameter.dtype == torch.float32 for parameter in [*p.parameters(), *q.parameters()]
    )
    exact_p, exact_q = (torch.manual_seed(0), pair())[1]
    exact = fit(exact_p, exact_q, digits().train.x[:300], **how)
    assert history["loss"] != exact["loss"]
    assert abs(history["loss"][-1] - exact["loss"][-1]) < 0.02 * exact["loss"][-1]


@pytest.mark.parametrize("bound", [ELBO, lambda: IWAE(3), lambda: IWAE(3, gradient="dreg")])
def test_recorded_steps_in_half_precision_are_the_eager_ones(bound):
    torch.manual_seed(0)
    p, q = pair()
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_step(bound(), p, q, torch.bernoulli(torch.rand(6, 64)))
        assert (
            p.likelihood(q.posterior(torch.rand(6, 64)).rsample())
            .log_prob(torch.ones(6, 64))
            .dtype
            == torch.float32
        )

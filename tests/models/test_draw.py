"""DRAW, against its loss by hand and a linear Gaussian model."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.nn.functional import linear

from tarspyro import (
    Conditional,
    data,
    distributions,
    evaluate,
    fit,
    guides,
    initialize_from_data,
    load_run,
    models,
    plot,
)
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, FIVO, IWAE, Renyi, check_pair
from tarspyro.nn import (
    MLP,
    AttentionRead,
    AttentionWrite,
    Canvas,
    ConvLSTMCell,
    ConvRead,
    ConvWrite,
    FeatureMap,
    IdentityTrunk,
    Read,
    Recurrence,
    Write,
)
from tarspyro.sequences import states_of

from ..infer.test_compiled import assert_same_step
from ..programs import assert_within

SHAPE = (1, 4, 6)
LABELS = 3
BOUNDS = {
    "ELBO": ELBO,
    "ELBO, 3 particles": lambda: ELBO(3),
    "ELBO, sampled": lambda: ELBO(analytic_kl=False),
    "IWAE": lambda: IWAE(3),
    "IWAE, dreg": lambda: IWAE(3, gradient="dreg"),
    "Renyi": lambda: Renyi(0.5, 3),
    "FIVO": lambda: FIVO(3),
}
KINDS = ["whole", "attention", "convolutional"]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
given_labels = pytest.mark.parametrize(
    "labels", [False, True], ids=["unconditional", "given labels"]
)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pair(
    kind="whole", labels=False, steps=3, family=dist.Normal, likelihood=None, learned=False
):
    """A small pair. Encoder and decoder differ in size, so their states cannot be confused."""
    given = LABELS if labels else 0
    likelihood = likelihood or Conditional(dist.Bernoulli, IdentityTrunk(SHAPE), SHAPE)
    if kind == "convolutional":
        h, g, grid = (5, 2, 3), (4, 2, 3), (2, 3)
        trunks = [
            FeatureMap([shape, LABELS]) if labels else None
            for shape in ((2, *grid), (3 + 5, *grid))
        ]
        if labels:
            trunks[1] = FeatureMap([(3, *grid), h, LABELS])
        decoder = Recurrence(ConvLSTMCell(2 + given, h), trunks[0], learn_initial=learned)
        encoder = Recurrence(ConvLSTMCell(3 + 5 + given, g), trunks[1], learn_initial=learned)
        canvas, read = Canvas(decoder, ConvWrite(h, SHAPE)), ConvRead(SHAPE, 3, stride=2)
        prior = Conditional(family, FeatureMap(h), (2, *grid))
        posterior = Conditional(family, FeatureMap(g), (2, *grid))
    else:
        read = Read(SHAPE) if kind == "whole" else AttentionRead(5, SHAPE, 2)
        write = Write(5, SHAPE) if kind == "whole" else AttentionWrite(5, SHAPE, 3)
        canvas = Canvas(Recurrence(nn.LSTMCell(2 + given, 5), learn_initial=learned), write)
        encoder = Recurrence(
            nn.LSTMCell(read.out_features + 5 + given, 4), learn_initial=learned
        )
        prior, posterior = default_prior(family, 2), Conditional(family, MLP(4, []), 2)
    name = "ConditionalDRAW" if labels else "ConvDRAW" if kind == "convolutional" else "DRAW"
    p = getattr(models, name)(prior, canvas, likelihood, steps)
    return p, getattr(guides, name)(posterior, encoder, read, canvas, likelihood, steps)


def shaken(p, q, seed=0):
    """Random weights, so parameters that are initialized at zero count too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters_of(p, q):
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return p, q


def parameters_of(p, q):
    return list(dict.fromkeys([*p.parameters(), *q.parameters()]))


def images(num=4, labels=False):
    x = torch.bernoulli(torch.full((num, *SHAPE), 0.4))
    return (x, torch.eye(LABELS)[torch.arange(num) % LABELS]) if labels else (x,)


# --- what the bounds compute


def lstm(cell, inputs, state):
    gates = linear(inputs, cell.weight_ih, cell.bias_ih) + linear(
        state[0], cell.weight_hh, cell.bias_hh
    )
    i, f, g, o = gates.chunk(4, 1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def window(placing, size):
    """Equations 22 to 26, with sums instead of a softmax."""
    _, height, width = SHAPE
    x, y, log_variance, log_stride, log_intensity = placing.unbind(1)
    stride = (max(height, width) - 1) / (size - 1) * log_stride.exp()
    banks = []
    for center, length in (
        ((height + 1) / 2 * (y + 1), height),
        ((width + 1) / 2 * (x + 1), width),
    ):
        rows = []
        for i in range(1, size + 1):
            mean = center + (i - size / 2 - 0.5) * stride
            row = torch.exp(
                -((torch.arange(1, length + 1) - mean[:, None]) ** 2)
                / (2 * log_variance.exp()[:, None])
            )
            rows.append(row / row.sum(1, keepdim=True))
        banks.append(torch.stack(rows, 1))
    return *banks, log_intensity.exp()[:, None, None]


def by_hand(p, q, x, attention):
    """The loss of the paper (eqs. 3 to 12) on images (B, H, W), summed over them, without
    Pyro.
    """
    decoder, encoder, write, read = p.canvas.cell, q.encoder, p.canvas.write, q.read
    start = lambda recurrence: [part.expand(len(x), -1) for part in recurrence.start]  # noqa: E731
    h, g, canvas, kl = (
        start(decoder),
        start(encoder),
        p.canvas.start.expand(len(x), 1, 4, 6)[:, 0],
        0.0,
    )
    for _ in range(p.steps):
        error = x - 1 / (1 + torch.exp(-canvas))
        if attention:
            rows, columns, intensity = window(
                linear(h[0], read.placing.weight, read.placing.bias), 2
            )
            seen = [
                (intensity * torch.einsum("nia,nab,njb->nij", rows, image, columns)).flatten(1)
                for image in (x, error)
            ]
        else:
            seen = [x.flatten(1), error.flatten(1)]
        g = lstm(encoder.cell, torch.cat([*seen, h[0]], 1), g)
        loc = linear(g[0], q.posterior.heads["loc"].weight, q.posterior.heads["loc"].bias)
        log_scale = linear(
            g[0], q.posterior.heads["scale"].weight, q.posterior.heads["scale"].bias
        )
        z = loc + log_scale.exp() * torch.randn(loc.shape)
        kl = kl + 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1)
        h = lstm(decoder.cell, z, h)
        if attention:
            rows, columns, intensity = window(
                linear(h[0], write.placing.weight, write.placing.bias), 3
            )
            patch = linear(h[0], write.patch.weight, write.patch.bias).reshape(-1, 3, 3)
            canvas = (
                canvas + torch.einsum("nia,nij,njb->nab", rows, patch, columns) / intensity
            )
        else:
            canvas = canvas + linear(h[0], write.linear.weight, write.linear.bias).reshape(
                -1, 4, 6
            )
    log_p = (x * canvas - torch.log1p(torch.exp(canvas))).sum((1, 2))
    return kl - log_p


@pytest.mark.parametrize("kind", ["whole", "attention"])
def test_the_loss_by_hand(double, kind):
    """Value and gradient with the same noise, and with learned initial states and canvas. In
    evaluation mode the loss is minus the bound.
    """
    p, q = shaken(*pair(kind, learned=True))
    (x,), bound, results = images(), ELBO(), []
    bound.structure(p, q, x)
    for function in (
        lambda: by_hand(p, q, x[:, 0], kind == "attention").sum(),
        lambda: bound.differentiable_loss(p, q, x),
    ):
        torch.manual_seed(1)
        loss = function()
        gradients = torch.autograd.grad(loss, parameters_of(p, q))
        assert all((gradient != 0).any() for gradient in gradients)
        results.append([loss.detach(), *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    many = x.repeat(2000, 1, 1, 1)
    torch.manual_seed(2)
    with torch.no_grad():
        expected = -by_hand(p, q, many[:, 0], kind == "attention").reshape(2000, 4)
    found = evaluate.elbo(p, q, many, seed=3).elbo.reshape(2000, 4)
    error = (found.var(0) + expected.var(0)).sqrt() / 2000**0.5
    assert ((found.mean(0) - expected.mean(0)).abs() < 4 * error).all()


class Linear(nn.Module):
    """A cell without a nonlinearity: h' = A h + B z."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.inputs, self.before = (
            nn.Linear(input_size, hidden_size),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, inputs, state):
        return self.inputs(inputs) + self.before(state)


@pytest.mark.parametrize("learned_prior", [False, True])
def test_a_linear_draw_meets_its_exact_likelihood(double, learned_prior):
    """c_T is linear in Gaussian noise, so p(x) is Gaussian. The bounds are below it and
    converge to it.
    """
    torch.manual_seed(0)
    shape, scale = (1, 1, 3), 0.8
    canvas = Canvas(Recurrence(Linear(2, 3), learn_initial=True), Write(3, shape))
    likelihood = Conditional(dist.Normal, IdentityTrunk(shape), shape, scale=0.7)
    prior = (
        Conditional(dist.Normal, MLP(3, []), 2, scale=scale)
        if learned_prior
        else default_prior(dist.Normal, 2)
    )
    posterior = Conditional(dist.Normal, MLP(3, []), 2)
    encoder = Recurrence(Linear(6 + 3, 3))
    p = models.DRAW(prior, canvas, likelihood, steps=2)
    q = guides.DRAW(posterior, encoder, Read(shape), canvas, likelihood, steps=2)
    with torch.no_grad():
        canvas.start.normal_(), canvas.cell.start.normal_()
        encoder.cell.inputs.weight.mul_(0.3)
    # h_t = mean + noise^T matrix, for the noise of both steps
    cell, write = canvas.cell.cell, canvas.write.linear
    mean, matrix = canvas.cell.start[0].detach(), torch.zeros(4, 3)
    total, spread = canvas.start.detach().flatten(), torch.zeros(4, 3)
    for t in range(2):
        own = torch.zeros(4, 2)
        own[2 * t : 2 * t + 2] = torch.eye(2) * (scale if learned_prior else 1.0)
        z_mean, z_matrix = torch.zeros(2), own
        if learned_prior:
            head = prior.heads["loc"]
            z_mean, z_matrix = (
                linear(mean, head.weight, head.bias),
                matrix @ head.weight.T + own,
            )
        mean = linear(z_mean, cell.inputs.weight, cell.inputs.bias) + linear(
            mean, cell.before.weight, cell.before.bias
        )
        matrix = z_matrix @ cell.inputs.weight.T + matrix @ cell.before.weight.T
        total = total + linear(mean, write.weight, write.bias)
        spread = spread + matrix @ write.weight.T
    law = dist.MultivariateNormal(
        total.detach(), (spread.T @ spread).detach() + 0.7**2 * torch.eye(3)
    )
    x = law.sample((4,)).reshape(4, *shape)
    exact = law.log_prob(x.flatten(1))
    found = evaluate.log_likelihood(p, q, x, num_particles=20_000, errors=True, seed=0)
    assert ((found.log_likelihood - exact).abs() < 4 * found.standard_error).all()
    assert found.standard_error.max() < 0.1
    gaps = []
    for count in (1, 10):
        values = evaluate.log_likelihood(
            p, q, x.repeat(500, 1, 1, 1), num_particles=count, seed=1
        ).reshape(500, 4)
        gaps.append(exact.mean() - values.mean())
    elbo = evaluate.elbo(p, q, x.repeat(500, 1, 1, 1), seed=1).elbo.mean()
    assert gaps[0] > gaps[1] > 0 and exact.mean() - elbo > gaps[1]
    with torch.no_grad():
        drawn = p(batch_size=20_000).flatten(1)
    assert_within(drawn, total.detach())
    assert_within((drawn - total.detach()) ** 2, law.covariance_matrix.diagonal())


def test_the_kl_of_a_step_is_in_closed_form(double):
    """The KL of one step has no noise, also for convolutional maps."""
    for kind in KINDS:
        p, q = shaken(*pair(kind, steps=1))
        x = images()
        kls = {ELBO().loss_and_terms(p, q, *x)[1]["kl"].item() for _ in range(3)}
        assert max(kls) - min(kls) < 1e-12


@given_labels
@each_kind
def test_particles_are_one_run_each(double, kind, labels):
    """Given the draws, the densities of all sites equal those of a run with this particle
    only.
    """
    p, q = shaken(*pair(kind, labels))
    x = images(labels=labels)
    drawn = pyro.poutine.trace(pyro.plate("particles", 3, dim=-2)(q)).get_trace(*x)
    values = {
        name: node["value"] for name, node in drawn.nodes.items() if name.startswith("z_")
    }
    assert len(values) == 3 and values["z_2"].shape[:2] == (3, 4)

    def weights(draws):
        traces = [
            pyro.poutine.trace(pyro.condition(half, draws)).get_trace(*x) for half in (p, q)
        ]
        for trace in traces:
            trace.compute_log_prob()
        logs = [
            sum(node["log_prob"] for name, node in trace.nodes.items() if name[0] in "zx")
            for trace in traces
        ]
        return logs[0] - logs[1]

    together = weights(values)
    assert together.shape == (3, 4)
    for k in range(3):
        torch.testing.assert_close(
            weights({name: value[k] for name, value in values.items()}), together[k]
        )


def test_one_particle_is_the_elbo_of_a_filter_too(double):
    p, q = shaken(*pair("attention"))
    (x,), losses = images(), []
    for bound in (FIVO(1), ELBO(analytic_kl=False)):
        bound.structure(p, q, x)
        torch.manual_seed(0)
        losses.append(bound.differentiable_loss(p, q, x).detach())
    torch.testing.assert_close(*losses)


# --- the state


@each_kind
def test_the_canvas_starts_at_zero_and_is_learned(kind):
    torch.manual_seed(0)
    p, q = pair(kind)
    assert (
        (p.canvas.start == 0).all() and p.canvas is q.canvas and p.likelihood is q.likelihood
    )
    state = p.canvas.initial(5)
    assert (
        p.canvas.hidden(state).shape[1] == 5
        and q.encoder.hidden(q.encoder.initial(5)).shape[1] == 4
    )
    ELBO().differentiable_loss(p, q, *images()).backward()
    assert (p.canvas.start.grad != 0).all()
    (x,) = images(200)
    fit(p, q, x, epochs=3, lr=0.1, progress=False, seed=0)
    assert (p.canvas.start != 0).any()


@each_kind
def test_training_starts_with_the_canvas_at_the_frequencies_of_the_pixels(kind):
    """A canvas of logits then has the bound of independent pixels, their entropy, within the
    nat that the first draws cost.
    """
    torch.manual_seed(0)
    frequency = torch.rand(SHAPE).clamp(0.05, 0.95)
    x = torch.bernoulli(frequency.expand(500, *SHAPE))
    p, q = pair(kind)
    initialize_from_data(p, q, x)
    found = torch.sigmoid(p.canvas.start.detach())
    assert (found - x.mean(0)).abs().mean() < 0.1
    log_p = [
        dist.Bernoulli(logits=p.canvas.painted(states_of(p, batch_size=len(x))[-1]))
        .log_prob(x)
        .sum((1, 2, 3))
        .mean()
        .item(),
        dist.Bernoulli(x.mean(0)).log_prob(x).sum((1, 2, 3)).mean().item(),
    ]
    assert log_p[0] > log_p[1] - 1.0
    before = p.canvas.start.detach().clone()
    initialize_from_data(p, q, 1 - x)  # it is not new any more
    assert torch.equal(p.canvas.start, before)


def test_a_canvas_whose_start_was_chosen_stays():
    (x,) = images(100)
    for choose in (
        lambda start: nn.init.ones_(start),
        lambda start: start.requires_grad_(False),
    ):
        p, q = pair()
        choose(p.canvas.start)
        before = p.canvas.start.detach().clone()
        initialize_from_data(p, q, x)
        assert torch.equal(p.canvas.start, before)


@each_kind
def test_the_guide_reads_the_error_image(double, kind):
    """If the initial canvas is the image itself, the error image is zero and a draw depends on
    x only.
    """
    p, q = pair(kind)
    (x,) = images(1)
    with torch.no_grad():
        p.canvas.start.copy_(200 * (x[0] - 0.5))
    seen = []
    q.read.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    q(x)
    assert len(seen) == 3 and seen[0][0] is x and seen[0][1].abs().max() < 1e-12
    states = states_of(p, batch_size=2)
    assert len(states) == 4 and all(
        p.canvas.painted(state).shape == (2, *SHAPE) for state in states
    )
    with pytest.raises(TypeError, match="program must be sequential"):
        states_of(lambda: None)


# --- any family, any bound


@each_bound
@each_kind
def test_trains_and_generates(bound, kind):
    torch.manual_seed(0)
    p, q = pair(kind)
    (x,) = images(60)
    x = x * (torch.rand(x.shape) < 0.2)
    check_pair(p, q, x)
    before = -evaluate.elbo(p, q, x).elbo.mean()
    history = fit(
        p,
        q,
        x,
        loss=bound(),
        epochs=3,
        lr=3e-2,
        batch_size=20,
        progress=False,
        seed=0,
    )
    assert history["loss"][-1] < before - 1
    scores = evaluate.log_likelihood(p, q, x[:10], num_particles=5)
    assert scores.shape == (10,) and scores.isfinite().all()
    assert p(batch_size=3).shape == (3, *SHAPE)


@pytest.mark.parametrize(
    "family", [distributions.Gamma, distributions.Dirichlet, distributions.GumbelSoftmax]
)
def test_other_families_of_codes_and_pixels(family):
    torch.manual_seed(0)
    likelihood = Conditional(
        dist.Normal, IdentityTrunk(SHAPE), 24, scale=nn.Parameter(torch.tensor(1.0))
    )
    p, q = pair("attention", family=family, likelihood=likelihood)
    x = torch.randn(40, 24)
    history = fit(
        p,
        q,
        x,
        epochs=4,
        lr=3e-2,
        batch_size=20,
        progress=False,
        seed=0,
    )
    assert history["loss"][-1] < history["loss"][0] and p(batch_size=2).shape == (2, 24)


@pytest.mark.parametrize(
    "kind, labels, bound",
    [("whole", False, IWAE(2)), ("attention", True, ELBO()), ("convolutional", False, ELBO())],
)
def test_recorded_steps_are_the_eager_ones(kind, labels, bound):
    assert_same_step(bound, *shaken(*pair(kind, labels, steps=2)), *images(labels=labels))


def test_recorded_steps_paint_once():
    """Both halves compute the state of modules that the library does not know; the recording
    computes it once.
    """
    from tarspyro.infer.compilation.recording import record, record_as_it_stands
    from tarspyro.scopes import local_parameters

    class OwnCanvas(Canvas):
        pass

    class OwnRecurrence(Recurrence):
        pass

    p, q = pair(steps=2)
    p.canvas.__class__ = OwnCanvas
    p.canvas.cell.__class__ = OwnRecurrence
    (x,), bound = images(), ELBO()
    with local_parameters():
        bound.structure(p, q, x)
        step = lambda x: bound.loss_and_terms(p, q, x)  # noqa: E731
        plain, merged = (
            make(step, (x,), **how).graph
            for make, how in ((record_as_it_stands, {"buffers": []}), (record, {}))
        )
    assert len(merged.graph.nodes) < 0.9 * len(plain.graph.nodes)


@given_labels
@each_kind
def test_run_folders_restore_the_pair(tmp_path, kind, labels):
    p, q = pair(kind, labels)
    x = images(8, labels)
    fit(p, q, x, epochs=1, folder=tmp_path / "run", seed=0, progress=False)
    run = load_run(tmp_path / "run")
    assert repr(run.model) == repr(p) and repr(run.guide) == repr(q)
    assert run.model.canvas is run.guide.canvas
    scores = [
        evaluate.log_likelihood(*halves, x, num_particles=5, seed=0)
        for halves in ((p, q), run[:2])
    ]
    assert torch.equal(*scores)


def test_svi_trains_draw():
    p, q = pair()
    svi = pyro.infer.SVI(p, q, pyro.optim.Adam({"lr": 0.03}), ELBO())
    (x,) = images(50)
    losses = [svi.step(x * (x.cumsum(0) < 5)) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])


# --- labels


# The label says all, so that the best code says nothing.
@pytest.mark.filterwarnings("ignore:The posterior has collapsed")
@pytest.mark.parametrize("kind", ["whole", "convolutional"])
def test_labels_determine_the_image(kind):
    """Trained on images that the label determines, the model paints the image of the given
    label.
    """
    torch.manual_seed(0)
    p, q = pair(kind, labels=True, steps=2)
    y = torch.eye(LABELS).repeat(40, 1)
    kinds = torch.zeros(LABELS, *SHAPE)
    for label in range(LABELS):
        kinds[label, ..., 2 * label : 2 * label + 2] = 1.0
    x = kinds.repeat(40, 1, 1, 1)
    fit(
        p,
        q,
        (x, y),
        epochs=30,
        batch_size=15,
        lr=0.03,
        progress=False,
        seed=0,
    )
    means = evaluate.sample(p, LABELS, given={"y": torch.eye(LABELS)}, mean=True, seed=0)
    assert ((means > 0.5) == (kinds > 0.5)).float().mean() > 0.95
    assert p(y=torch.eye(LABELS)).shape == (LABELS, *SHAPE)
    assert p(y=torch.eye(LABELS)[:1], batch_size=5).shape == (5, *SHAPE)
    # a Split's labels reach the pair that takes them, and no other
    split = data.Split(x[:30], torch.arange(30) % LABELS).one_hot()
    assert (
        evaluate.elbo(p, q, split).elbo.shape
        == evaluate.elbo(*pair(kind), split).elbo.shape
        == (30,)
    )


# --- pictures


@each_kind
def test_canvases_step_by_step(kind, tmp_path):
    p, q = shaken(*pair(kind))
    (x,) = images(6)
    generated = evaluate.canvases(p, num=5, seed=0)
    assert generated.images.shape == (5, 4, *SHAPE)
    torch.testing.assert_close(generated.images[2, 0], torch.sigmoid(p.canvas.start))
    torch.testing.assert_close(
        generated.images[:, -1], evaluate.sample(p, 5, mean=True, seed=0)
    )
    assert not torch.equal(generated.images, evaluate.canvases(p, num=5, seed=1).images)
    found = evaluate.canvases(p, q, x, num=6, seed=0)
    torch.manual_seed(0)
    trace = pyro.poutine.trace(
        pyro.poutine.replay(p, trace=pyro.poutine.trace(q).get_trace(x))
    ).get_trace(x)
    torch.testing.assert_close(found.images[:, -1], trace.nodes["x"]["fn"].mean)
    if kind == "attention":
        assert found.boxes.shape == (6, 3, 4) and (found.boxes[..., 2:] > 0).all()
    else:
        assert found.boxes is None
    for figure in (plot.canvases(p, num=3, columns=2), plot.canvases(p, q, x, num=2)):
        assert isinstance(figure, Figure)
        windows = len(figure.axes[0].patches)
        assert windows == (
            0 if kind != "attention" else 3 if "0, 3" in figure.axes[0].get_title() else 6
        )
    written = plot.animation(tmp_path / "canvases.gif", p, q, x, num=5, frames_per_second=10)
    with Image.open(written) as picture:
        durations = []
        for frame in range(picture.n_frames):
            picture.seek(frame)
            durations.append(picture.info["duration"])
        assert picture.n_frames >= 4 and sum(durations) == 100 * (4 + 20)
    with pytest.raises(ValueError, match="path must end in .gif, got 'a.png'"):
        plot.animation(tmp_path / "a.png", p)


def test_windows_are_plotted_at_their_place():
    p, _ = pair("attention", steps=1)
    with torch.no_grad():
        p.canvas.write.placing.weight.zero_()
        p.canvas.write.placing.bias.copy_(torch.tensor([0.0, 0.0, 0.0, math.log(0.4), 0.0]))
    figure = plot.canvases(p, num=2)
    first, second = figure.axes[0].patches
    # the second column: 7 pixels from the left with lines of white between, centre (2.5, 1.5),
    # 2 wide
    assert first.get_bbox().bounds == pytest.approx((8 + 2.5 - 1, 1 + 1.5 - 1, 2, 2))
    assert second.get_bbox().bounds == pytest.approx((9.5, 1.5 + 5, 2, 2))


# --- rows as time


def test_rows_of_images_are_sequences():
    torch.manual_seed(0)
    rows = data.digits().train[:100].reshape(8, 8)
    assert rows.x.shape == (100, 8, 8)
    recurrence = Recurrence(nn.GRUCell(8 + 2, 8))
    p = models.VRNN(
        recurrence,
        Conditional(dist.Normal, MLP(8, []), 2),
        Conditional(dist.Bernoulli, MLP([2, 8], []), 8),
    )
    q = guides.VRNN(recurrence, Conditional(dist.Normal, MLP([8, 8], []), 2))
    how = {"epochs": 3, "lr": 1e-2, "batch_size": 20}
    history = fit(p, q, rows, binarize=True, progress=False, seed=0, **how)
    assert history["loss"][-1] < history["loss"][0] - 3


# --- what is refused


def test_bad_input():
    p, q = pair()
    (x,) = images()
    for half, arguments in (
        (models.DRAW, [p.prior, p.canvas, p.likelihood]),
        (guides.DRAW, [q.posterior, q.encoder, q.read, q.canvas, q.likelihood]),
    ):
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            half(*arguments, steps=0)
    with pytest.raises(
        ValueError,
        match=r"x must have rows of .* \(1, 4, 6\), got \(1, 6, 4\)",
    ):
        q(x.mT)
    with pytest.raises(
        ValueError,
        match=r"x .*rows of .*\(1, 6, 4\)",
    ):
        fit(p, q, x.mT, epochs=1, progress=False)
    p, q = pair(labels=True)
    for half in (
        lambda: p(x),
        lambda: p(batch_size=3),
        lambda: fit(p, q, x, epochs=1, progress=False),
    ):
        with pytest.raises((ValueError, TypeError), match="y"):
            half()
    with pytest.raises(
        ValueError, match=r"y must be given.* models.ConditionalDRAW .* model\(x, y\)"
    ):
        p(x)
    with pytest.raises(TypeError, match="model must paint on a canvas, as models.DRAW does"):
        evaluate.canvases(
            models.VAE(
                default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, []), 24)
            )
        )
    with pytest.raises(ValueError, match="guide and data must be given together"):
        plot.canvases(pair()[0], q)
    with pytest.raises(ValueError, match="columns must be at least 2, got 1"):
        plot.canvases(p, columns=1)

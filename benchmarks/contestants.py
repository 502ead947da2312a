"""The same training steps written three ways: by hand in PyTorch, as pairs for TarsPyro, and
for Pyro's own SVI.

Each ``Program`` holds what the benchmarks of speed compare: a module whose forward pass is the
loss as a PyTorch user writes it (or whose ``moves`` are the losses of several players), a
model and a guide with the same networks, the bound or the game, Pyro's bound where it has one,
and a batch.
"""

import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from torch import nn

from tarspyro import (
    Conditional,
    Deterministic,
    Optimizer,
    accelerators,
    distributions,
    guides,
    models,
)
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE, Adversarial
from tarspyro.infer.traces import no_guide
from tarspyro.modules import StochasticModule
from tarspyro.nn import (
    MLP,
    Canvas,
    ConvDecoder,
    ConvEncoder,
    Discriminator,
    IdentityTrunk,
    Read,
    Recurrence,
    Write,
)
from tarspyro.scopes import local_parameters
from tarspyro.training.losses import Objective
from tarspyro.training.state import TrainingState
from tarspyro.training.trainer import Trainer

Step = Callable[[torch.Tensor], object]
cross_entropy = nn.functional.binary_cross_entropy_with_logits


class Program(NamedTuple):
    """One training step, three ways; and its name and options in ``numpyro_steps.py``."""

    by_hand: Callable[[], nn.Module]
    pair: Callable[[], tuple[Any, Any]]
    bound: Callable[[], Any]
    pyro_bound: Callable[[], Any] | None
    batch: Callable[[], torch.Tensor]
    numpyro: tuple[str, dict[str, Any]] | None = None


class HandWrittenVAE(nn.Module):
    """The VAE as a PyTorch user writes it, with the KL in closed form."""

    def __init__(self, pixels, hidden, latent):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.loc = nn.Linear(hidden, latent)
        self.log_scale = nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, pixels),
        )

    def forward(self, x):
        h = self.encoder(x)
        loc = self.loc(h)
        log_scale = self.log_scale(h)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        return (cross_entropy(self.decoder(z), x, reduction="sum") + kl) / len(x)


class HandWrittenIWAE(HandWrittenVAE):
    """The importance weighted autoencoder: the encoder runs once, the decoder on all draws
    together.
    """

    def __init__(self, pixels, hidden, latent, particles):
        super().__init__(pixels, hidden, latent)
        self.particles = particles

    def forward(self, x):
        h = self.encoder(x)
        loc = self.loc(h)
        log_scale = self.log_scale(h)
        noise = torch.randn(self.particles, *loc.shape, device=loc.device)
        z = loc + log_scale.exp() * noise
        logits = self.decoder(z)
        log_likelihood = -cross_entropy(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_weights = log_likelihood + (log_scale + (noise**2 - z**2) / 2).sum(-1)
        return -(log_weights.logsumexp(0) - math.log(self.particles)).mean()


class HandWrittenConvVAE(HandWrittenVAE):
    """The VAE with the layers of ``ConvEncoder`` and ``ConvDecoder``."""

    def __init__(self, latent):
        super().__init__(1, 1, 1)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.loc = nn.Linear(64 * 49, latent)
        self.log_scale = nn.Linear(64 * 49, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, 64 * 49),
            nn.Unflatten(1, (64, 7, 7)),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 3, 2, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 32, 3, 2, 1, 1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 3, padding=1),
        )


class HandWrittenGammaVAE(HandWrittenVAE):
    """The VAE with a Gamma posterior and torch's own reparameterization of it."""

    def forward(self, x):
        h = self.encoder(x)
        softplus = nn.functional.softplus
        q = torch.distributions.Gamma(
            softplus(self.loc(h)), softplus(self.log_scale(h)), validate_args=False
        )
        prior = torch.distributions.Gamma(
            torch.ones_like(q.rate), torch.ones_like(q.rate), validate_args=False
        )
        kl = torch.distributions.kl_divergence(q, prior).sum()
        return (cross_entropy(self.decoder(q.rsample()), x, reduction="sum") + kl) / len(x)


class HandWrittenGAN(nn.Module):
    """The two losses of a generative adversarial network, on logits, each with noise of its
    own.
    """

    def __init__(self, pixels, hidden, latent):
        super().__init__()
        self.latent = latent
        self.generator = nn.Sequential(
            nn.Linear(latent, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, pixels),
        )
        self.generator.append(nn.Sigmoid())
        self.discriminator = nn.Sequential(
            nn.Linear(pixels, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def discriminator_loss(self, x):
        with torch.no_grad():
            fake = self.generator(torch.randn(len(x), self.latent, device=x.device))
        real = self.discriminator(x)
        fake = self.discriminator(fake)
        return cross_entropy(real, torch.ones_like(real)) + cross_entropy(
            fake, torch.zeros_like(fake)
        )

    def generator_loss(self, x):
        score = self.discriminator(
            self.generator(torch.randn(len(x), self.latent, device=x.device))
        )
        return cross_entropy(score, torch.ones_like(score))

    def moves(self):
        return [
            (self.discriminator_loss, self.discriminator.parameters()),
            (self.generator_loss, self.generator.parameters()),
        ]


class Recurrent(nn.Module):
    """A variational recurrent network (Chung et al. 2015) with a GRU: the layers, the pair,
    and the loss by hand.
    """

    def __init__(self, inputs=28, latent=16, hidden=64):
        super().__init__()
        self.hidden = hidden
        self.cell = nn.GRUCell(inputs + latent, hidden)
        self.prior = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)
        )
        self.encoder = nn.Sequential(
            nn.Linear(inputs + hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent + hidden, hidden), nn.ReLU(), nn.Linear(hidden, inputs)
        )

    def normal(self, parameters):
        loc, log_scale = parameters.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def model(self, x):
        h = x.new_zeros(len(x), self.hidden)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", self.normal(self.prior(h)))
                logits = self.decoder(torch.cat([z, h], -1))
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=logits).to_event(1), obs=x[:, t])
                h = self.cell(torch.cat([x[:, t], z], -1), h)

    def guide(self, x):
        h = x.new_zeros(len(x), self.hidden)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                z = pyro.sample(
                    f"z_{t}", self.normal(self.encoder(torch.cat([x[:, t], h], -1)))
                )
                h = self.cell(torch.cat([x[:, t], z], -1), h)

    def forward(self, x):
        h = x.new_zeros(len(x), self.hidden)
        total = 0.0
        for t in range(x.shape[1]):
            loc, log_scale = self.encoder(torch.cat([x[:, t], h], -1)).chunk(2, -1)
            prior_loc, prior_log_scale = self.prior(h).chunk(2, -1)
            z = loc + log_scale.exp() * torch.randn_like(loc)
            logits = self.decoder(torch.cat([z, h], -1))
            variances = ((2 * log_scale).exp() + (loc - prior_loc) ** 2) / (
                2 * prior_log_scale
            ).exp()
            total = total + cross_entropy(logits, x[:, t], reduction="sum")
            total = total + (prior_log_scale - log_scale + variances / 2 - 0.5).sum()
            h = self.cell(torch.cat([x[:, t], z], -1), h)
        return total / len(x)


class HandWrittenDRAW(nn.Module):
    """DRAW without attention (Gregor et al. 2015), the decoder and the canvas computed once."""

    def __init__(self, steps, pixels=784, hidden=256, latent=100):
        super().__init__()
        self.steps = steps
        self.hidden = hidden
        self.latent = latent
        self.encoder = nn.LSTMCell(2 * pixels + hidden, hidden)
        self.decoder = nn.LSTMCell(latent, hidden)
        self.loc = nn.Linear(hidden, latent)
        self.log_scale = nn.Linear(hidden, latent)
        self.write = nn.Linear(hidden, pixels)
        self.start = nn.Parameter(torch.zeros(pixels))

    def forward(self, x):
        zeros = x.new_zeros(len(x), self.hidden)
        read = (zeros, zeros)
        painted = (zeros, zeros)
        canvas = self.start.expand_as(x)
        kl = 0.0
        for _ in range(self.steps):
            read = self.encoder(torch.cat([x, x - canvas.sigmoid(), painted[0]], -1), read)
            loc = self.loc(read[0])
            log_scale = self.log_scale(read[0])
            z = loc + log_scale.exp() * torch.randn_like(loc)
            kl = kl + 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
            painted = self.decoder(z, painted)
            canvas = canvas + self.write(painted[0])
        return (cross_entropy(canvas, x, reduction="sum") + kl) / len(x)


def draw_pair(steps, pixels=784, hidden=256, latent=100):
    """DRAW without attention as a pair."""
    shape = (1, 28, 28)
    canvas = Canvas(Recurrence(nn.LSTMCell(latent, hidden)), Write(hidden, shape))
    likelihood = Conditional(dist.Bernoulli, IdentityTrunk(shape), pixels)
    encoder = Recurrence(nn.LSTMCell(2 * pixels + hidden, hidden))
    posterior = Conditional(dist.Normal, MLP(hidden, []), latent)
    p = models.DRAW(default_prior(dist.Normal, latent), canvas, likelihood, steps)
    return p, guides.DRAW(posterior, encoder, Read(shape), canvas, likelihood, steps)


def vae_pair(pixels, hidden, latent, family=dist.Normal):
    """The VAE of two hidden layers as a pair."""
    likelihood = Conditional(dist.Bernoulli, MLP(latent, [hidden, hidden]), pixels)
    posterior = Conditional(family, MLP(pixels, [hidden, hidden]), latent)
    return models.VAE(default_prior(family, latent), likelihood), guides.VAE(posterior)


def conv_pair(latent):
    """The convolutional VAE as a pair."""
    shape = (1, 28, 28)
    likelihood = Conditional(dist.Bernoulli, ConvDecoder(latent, shape, [64, 32]), shape)
    posterior = Conditional(dist.Normal, ConvEncoder(shape, [32, 64]), latent)
    return models.VAE(default_prior(dist.Normal, latent), likelihood), guides.VAE(posterior)


def elbo(pixels, hidden, latent, batch):
    """The MLP VAE."""
    sizes = (pixels, hidden, latent)
    return Program(
        lambda: HandWrittenVAE(*sizes),
        lambda: vae_pair(*sizes),
        ELBO,
        Trace_ELBO,
        lambda: torch.rand(batch, pixels).round(),
        ("vae", {}),
    )


def iwae(pixels, hidden, latent, batch, particles, **options):
    """The importance weighted autoencoder."""
    sizes = (pixels, hidden, latent)
    return Program(
        lambda: HandWrittenIWAE(*sizes, particles),
        lambda: vae_pair(*sizes),
        lambda: IWAE(particles, **options),
        lambda: RenyiELBO(
            alpha=0, num_particles=particles, vectorize_particles=True, max_plate_nesting=1
        ),
        lambda: torch.rand(batch, pixels).round(),
        ("iwae", {"particles": particles}),
    )


def convolutional(batch):
    """The convolutional VAE."""
    return Program(
        lambda: HandWrittenConvVAE(32),
        lambda: conv_pair(32),
        ELBO,
        Trace_ELBO,
        lambda: torch.rand(batch, 1, 28, 28).round(),
        ("convolutional", {}),
    )


def recurrent(batch, length):
    """The variational recurrent network."""

    def pair():
        network = Recurrent()
        return network.model, network.guide

    return Program(
        Recurrent,
        pair,
        ELBO,
        Trace_ELBO,
        lambda: torch.rand(batch, length, 28).round(),
        ("recurrent", {}),
    )


def recurrent_pair(batch, length, inputs=28, latent=16, hidden=64):
    """The same network as the library's pair, which shares one recurrence."""

    def pair():
        cell = Recurrence(nn.GRUCell(inputs + latent, hidden))
        prior = Conditional(dist.Normal, MLP(hidden, [hidden]), latent)
        likelihood = Conditional(dist.Bernoulli, MLP([latent, hidden], [hidden]), inputs)
        posterior = Conditional(dist.Normal, MLP([inputs, hidden], [hidden]), latent)
        return models.VRNN(cell, prior, likelihood), guides.VRNN(cell, posterior)

    return recurrent(batch, length)._replace(pair=pair, numpyro=None)


def painting(batch, steps):
    """DRAW without attention."""
    return Program(
        lambda: HandWrittenDRAW(steps),
        lambda: draw_pair(steps),
        ELBO,
        Trace_ELBO,
        lambda: torch.rand(batch, 784).round(),
        ("painting", {"steps": steps}),
    )


def gamma(pixels, hidden, latent, batch):
    """The VAE with Gamma latent variables: ours by rejection sampling, the others by implicit
    derivatives.
    """
    sizes = (pixels, hidden, latent)
    return Program(
        lambda: HandWrittenGammaVAE(*sizes),
        lambda: vae_pair(*sizes, family=distributions.Gamma),
        ELBO,
        Trace_ELBO,
        lambda: torch.rand(batch, pixels).round(),
        ("gamma", {}),
    )


def adversarial(pixels, hidden, latent, batch):
    """The generative adversarial network, which Pyro has no loss for."""
    sizes = (pixels, hidden, latent)

    def pair():
        generator = Deterministic(
            MLP(latent, [hidden, hidden]), pixels, transform=nn.Sigmoid()
        )
        return models.GAN(default_prior(dist.Normal, latent), generator), no_guide

    def game():
        return Adversarial(Discriminator(MLP(pixels, [hidden, hidden])))

    return Program(
        lambda: HandWrittenGAN(*sizes),
        pair,
        game,
        None,
        lambda: torch.rand(batch, pixels).round(),
    )


def hand_written(
    program: Program, device: str, *, compiled: bool = False, **options: object
) -> Step:
    """The training step of a PyTorch user."""
    module = program.by_hand().to(device)
    moves = module.moves() if hasattr(module, "moves") else [(module, module.parameters())]
    players = [
        (
            torch.compile(loss_of, dynamic=False) if compiled else loss_of,
            torch.optim.Adam(parameters, lr=1e-3, **options),
        )
        for loss_of, parameters in moves
    ]

    def step(x):
        for loss_of, optimizer in players:
            optimizer.zero_grad()
            loss = loss_of(x)
            loss.backward()
            optimizer.step()
        return loss

    return step


def ours(program: Program, device: str, *, compiled: bool = False, **options: object) -> Step:
    """The step that ``fit`` runs, its bookkeeping included."""
    model, guide = program.pair()
    modules = [module.to(device) for module in modules_of(model, guide)]
    parameters = list({id(p): p for module in modules for p in module.parameters()}.values())
    loss = program.bound()
    objective = Objective(loss, model, guide)
    for module in objective.modules.values():
        module.to(device)
    objective.add_players(parameters, [])
    if compiled:
        objective.compile(choose=False, **options)
    # The options that fit chooses.
    optimizers = [
        Optimizer().make(player.name, player.parameters, captured=compiled)
        for player in objective.players
    ]
    trainer = Trainer(objective, TrainingState(objective.halves, optimizers))
    # As in an epoch of fit, which ends with the step: without a reference it would end here.
    epoch = contextlib.ExitStack()
    epoch.enter_context(objective.unchanging())

    def step(x, epoch=epoch):
        with local_parameters(), pyro.validation_enabled(False):
            return trainer.step((x,))

    return step


def svi(program: Program, device: str) -> Step:
    """Pyro as its tutorials write it: one optimizer for each parameter, and default
    validation.
    """
    model, guide = program.pair()
    for index, module in enumerate(module.to(device) for module in modules_of(model, guide)):
        if not isinstance(module, StochasticModule):
            model, guide = (
                registered(half, f"{program.pair}_{index}", module) for half in (model, guide)
            )
    inference = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), program.pyro_bound())

    def step(x):
        with pyro.validation_enabled(True):
            return inference.step(x)

    return step


def registered(half: Callable, name: str, module: nn.Module) -> Callable:
    """A half in which Pyro's own bounds find the parameters of a module."""

    def run(x):
        pyro.module(name, module)
        return half(x)

    return run


def modules_of(*halves: object) -> list[nn.Module]:
    """The modules that halves are, or are methods of, each once."""
    owners = (getattr(half, "__self__", half) for half in halves)
    return list(
        {id(owner): owner for owner in owners if isinstance(owner, nn.Module)}.values()
    )


class Cost(NamedTuple):
    """What some steps have cost: seconds on the clock, and of the process's processor time."""

    steps: int
    wall: float
    cpu: float

    @property
    def ms(self) -> float:
        """Milliseconds a step on the clock."""
        return 1e3 * self.wall / self.steps

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of the processor a step."""
        return 1e3 * self.cpu / self.steps


# Takes so many steps, or a few more, and tells what they have cost.
Turn = Callable[[int], Cost]


def turn_of(step: Step, x: torch.Tensor) -> Turn:
    """The turn of a contestant of this process."""

    def turn(steps: int) -> Cost:
        accelerators.synchronize(x.device)
        wall = time.perf_counter()
        cpu = time.process_time()
        for _ in range(steps):
            step(x)
        accelerators.synchronize(x.device)
        return Cost(steps, time.perf_counter() - wall, time.process_time() - cpu)

    return turn


def take_turns(
    turns: dict[str, Turn], rounds: int, seconds: float = 0.1
) -> dict[str, list[Cost]]:
    """The cost of every contestant in every round, whose order is drawn anew.

    In a round each contestant takes as many steps as fill about so many seconds, at least one.
    """
    counts = {}
    for name, turn in turns.items():
        turn(10)
        cost = turn(3)
        counts[name] = max(1, round(seconds * cost.steps / cost.wall))
    costs: dict[str, list[Cost]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name in random.sample(list(turns), len(turns)):
            costs[name].append(turns[name](counts[name]))
    return costs


def measure(
    contestants: dict[str, Step], x: torch.Tensor, rounds: int, seconds: float = 0.1
) -> dict[str, list[float]]:
    """Milliseconds a step on the clock of contestants that take turns on a batch."""
    turns = {name: turn_of(step, x) for name, step in contestants.items()}
    costs = take_turns(turns, rounds, seconds)
    return {name: [cost.ms for cost in values] for name, values in costs.items()}


def ratio(times: dict[str, list[float]], name: str, to: str) -> float:
    """The median over the rounds of one contestant's time to another's in the same round."""
    return statistics.median(
        one / other for one, other in zip(times[name], times[to], strict=True)
    )

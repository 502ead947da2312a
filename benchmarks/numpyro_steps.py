"""NumPyro's side of ``step_time.py``: the same programs as a NumPyro user writes them.

NumPyro is no dependency of the package. ``step_time.py --numpyro PYTHON`` starts
``python benchmarks/numpyro_steps.py`` with the Python of an environment that has it, and asks
it for steps whenever it is NumPyro's turn. Requests and replies are JSON, one a line:

    {"program": "vae", "options": {}, "start": "start.npz"}  ->  {"losses": [551.3, 550.9]}
    {"contestant": "step", "steps": 100}  ->  {"steps": 100, "wall": 0.09, "cpu": 0.15}

The file holds a batch ``x`` and the initial weights of the pair in PyTorch, under their names
there with ``p.`` or ``q.`` in front. The losses are negative bounds in nats per data point with
these weights, each of new draws. The contestant ``step`` is a jitted ``SVI.update``, ``scan`` a
jitted ``lax.scan`` of 20 of them, which rounds the number of steps up to whole blocks. Both
donate their state. Times are seconds on the clock and seconds of the processor.
"""

import functools
import json
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, RenyiELBO, TraceMeanField_ELBO

BLOCK = 20
DRAWS = 20


class Program(NamedTuple):
    """A model, a guide, and a bound."""

    model: Any
    guide: Any
    bound: Any


# --- networks, with the weights of the PyTorch pair


def dense(weights, name, x):
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def hidden_layers(weights, name, x):
    h = jax.nn.relu(dense(weights, f"{name}.0", x))
    return jax.nn.relu(dense(weights, f"{name}.2", h))


def convolution(weights, name, x, stride=1):
    return _convolve(weights, name, x, window_strides=(stride, stride), padding=[(1, 1)] * 2)


def transposed_convolution(weights, name, x):
    return _convolve(
        weights, name, x, window_strides=(1, 1), padding=[(1, 2)] * 2, lhs_dilation=(2, 2)
    )


def _convolve(weights, name, x, **options):
    layout = ("NHWC", "HWIO", "NHWC")
    kernel = weights[f"{name}.weight"]
    maps = lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **options)
    return maps + weights[f"{name}.bias"]


def gru(weights, x, h):
    of_x = x @ weights["cell.weight_ih"] + weights["cell.bias_ih"]
    of_h = h @ weights["cell.weight_hh"] + weights["cell.bias_hh"]
    reset_x, update_x, new_x = jnp.split(of_x, 3, -1)
    reset_h, update_h, new_h = jnp.split(of_h, 3, -1)
    reset = jax.nn.sigmoid(reset_x + reset_h)
    update = jax.nn.sigmoid(update_x + update_h)
    return (1 - update) * jnp.tanh(new_x + reset * new_h) + update * h


def lstm(weights, name, x, state):
    h, c = state
    gates = x @ weights[f"{name}.weight_ih"] + weights[f"{name}.bias_ih"]
    gates += h @ weights[f"{name}.weight_hh"] + weights[f"{name}.bias_hh"]
    enter, forget, new, leave = jnp.split(gates, 4, -1)
    c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(enter) * jnp.tanh(new)
    return jax.nn.sigmoid(leave) * jnp.tanh(c), c


# --- distributions


def normal(loc, log_scale):
    return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)


def bernoulli(logits, event_dim=1):
    return dist.Bernoulli(logits=logits).to_event(event_dim)


def normal_posterior(q, features):
    loc = dense(q, "posterior.heads.loc", features)
    log_scale = dense(q, "posterior.heads.scale", features)
    return normal(loc, log_scale)


# --- programs


def autoencoder(start, prior, posterior, likelihood, bound):
    """The programs of one latent variable."""

    def model(x):
        p = numpyro.param("p", start["p"])
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", prior)
            numpyro.sample("x", likelihood(p, z), obs=x)

    def guide(x):
        q = numpyro.param("q", start["q"])
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", posterior(q, x))

    return Program(model, guide, bound)


def encoder(q, x):
    return normal_posterior(q, hidden_layers(q, "posterior.trunk.layers", x))


def logits_of(p, z):
    h = hidden_layers(p, "likelihood.trunk.layers", z)
    return dense(p, "likelihood.heads.logits", h)


def decoder(p, z):
    return bernoulli(logits_of(p, z))


def standard_normal(start):
    latent = len(start["q"]["posterior.heads.loc.bias"])
    return normal(jnp.zeros(latent), jnp.zeros(latent))


def vae(start, bound=None):
    """The MLP VAE."""
    bound = bound or TraceMeanField_ELBO()
    return autoencoder(start, standard_normal(start), encoder, decoder, bound)


def iwae(start, particles):
    """The importance weighted autoencoder."""
    return vae(start, RenyiELBO(alpha=0, num_particles=particles))


def gamma(start):
    """The VAE with Gamma latent variables and implicit derivatives of their draws."""
    ones = jnp.ones(len(start["q"]["posterior.heads.rate.bias"]))
    prior = dist.Gamma(ones, ones).to_event(1)

    def encoder(q, x):
        h = hidden_layers(q, "posterior.trunk.layers", x)
        log_concentration = dense(q, "posterior.heads.concentration", h)
        log_rate = dense(q, "posterior.heads.rate", h)
        return dist.Gamma(jnp.exp(log_concentration), jnp.exp(log_rate)).to_event(1)

    return autoencoder(start, prior, encoder, decoder, TraceMeanField_ELBO())


def convolutional(start):
    """The convolutional VAE, with channels last."""

    def encoder(q, x):
        x = x.reshape(len(x), 28, 28, 1)
        h = jax.nn.relu(convolution(q, "posterior.trunk.layers.0", x, stride=2))
        h = jax.nn.relu(convolution(q, "posterior.trunk.layers.2", h, stride=2))
        return normal_posterior(q, h.transpose(0, 3, 1, 2).reshape(len(x), -1))

    def decoder(p, z):
        h = jax.nn.relu(dense(p, "likelihood.trunk.layers.0", z))
        h = h.reshape(len(z), 64, 7, 7).transpose(0, 2, 3, 1)
        h = jax.nn.relu(transposed_convolution(p, "likelihood.trunk.layers.3", h))
        h = jax.nn.relu(transposed_convolution(p, "likelihood.trunk.layers.5", h))
        logits = convolution(p, "likelihood.heads.logits.0", h)
        return bernoulli(logits.reshape(len(z), 1, 28, 28), event_dim=3)

    return autoencoder(start, standard_normal(start), encoder, decoder, TraceMeanField_ELBO())


def recurrent(start):
    """The variational recurrent network."""

    def network(p, name, *inputs):
        h = jax.nn.relu(dense(p, f"{name}.0", jnp.concatenate(inputs, -1)))
        return dense(p, f"{name}.2", h)

    def conditional(p, name, *inputs):
        return normal(*jnp.split(network(p, name, *inputs), 2, -1))

    def unroll(step, p, x):
        h = jnp.zeros((len(x), p["cell.weight_hh"].shape[0]))
        scan(step, h, jnp.swapaxes(x, 0, 1))

    def model(x):
        p = numpyro.param("p", start["p"])

        def step(h, x_t):
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", conditional(p, "prior", h))
                numpyro.sample("x", bernoulli(network(p, "decoder", z, h)), obs=x_t)
            return gru(p, jnp.concatenate([x_t, z], -1), h), None

        unroll(step, p, x)

    def guide(x):
        p = numpyro.param("p", start["p"])

        def step(h, x_t):
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", conditional(p, "encoder", x_t, h))
            return gru(p, jnp.concatenate([x_t, z], -1), h), None

        unroll(step, p, x)

    return Program(model, guide, TraceMeanField_ELBO())


def painting(start, steps):
    """DRAW without attention."""
    prior = standard_normal(start)

    def initial(p, x):
        zeros = jnp.zeros((len(x), p["canvas.cell.cell.weight_hh"].shape[0]))
        return jnp.broadcast_to(p["canvas.start"].reshape(-1), x.shape), (zeros, zeros)

    def paint(p, canvas, decoder, z):
        decoder = lstm(p, "canvas.cell.cell", z, decoder)
        return canvas + dense(p, "canvas.write.linear", decoder[0]), decoder

    def model(x):
        p = numpyro.param("p", start["p"])

        def step(state, _):
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", prior)
            return paint(p, *state, z), None

        (canvas, _), _ = scan(step, initial(p, x), None, length=steps)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", bernoulli(canvas), obs=x)

    def guide(x):
        p = numpyro.param("p", start["p"])
        q = numpyro.param("q", start["q"])

        def step(state, _):
            (canvas, decoder), encoder = state
            seen = jnp.concatenate([x, x - jax.nn.sigmoid(canvas), decoder[0]], -1)
            encoder = lstm(q, "encoder.cell", seen, encoder)
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", normal_posterior(q, encoder[0]))
            return (paint(p, canvas, decoder, z), encoder), None

        painted = initial(p, x)
        scan(step, (painted, painted[1]), None, length=steps)

    return Program(model, guide, TraceMeanField_ELBO())


PROGRAMS = {
    "vae": vae,
    "iwae": iwae,
    "gamma": gamma,
    "convolutional": convolutional,
    "recurrent": recurrent,
    "painting": painting,
}


# --- training


def load(path):
    """The initial weights of a file by model and guide, and its batch."""
    start = {"p": {}, "q": {}}
    with np.load(path) as arrays:
        for name in arrays:
            half, _, rest = name.partition(".")
            if half in start:
                start[half][rest] = jnp.array(_in_layout_of_jax(rest, arrays[name]))
        x = jnp.array(arrays["x"])
    return start, x


def _in_layout_of_jax(name, array):
    """PyTorch's matrices are (outputs, inputs). Its kernels are (outputs, inputs, height, width),
    those of a transposed convolution (inputs, outputs, height, width) and turned by 180 degrees.
    """
    if array.ndim == 4 and name.startswith("likelihood.trunk"):
        return array[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array


def svi_of(program):
    return SVI(program.model, program.guide, numpyro.optim.Adam(1e-3), program.bound)


def losses(program, x):
    """Losses at the start in nats per data point, each of new draws."""
    svi = svi_of(program)
    parameters = svi.get_params(svi.init(random.key(0), x))
    loss_of = jax.jit(
        lambda key: program.bound.loss(key, parameters, program.model, program.guide, x)
    )
    return [float(loss_of(key)) / len(x) for key in random.split(random.key(1), DRAWS)]


class Training:
    """A training on one batch, by single steps or by blocks of them."""

    def __init__(self, program, x, steps):
        svi = svi_of(program)
        update = svi.update
        if steps > 1:

            def update(state, x):
                return lax.scan(lambda state, _: svi.update(state, x), state, length=steps)

        self.update = jax.jit(update, donate_argnums=0)
        # Copies, because the initial weights, which others start from too, must not be donated.
        self.state = jax.tree.map(jnp.copy, svi.init(random.key(0), x))
        self.x = x
        self.steps = steps

    def take(self, steps):
        """Takes at least so many steps, and tells how many and what they cost."""
        calls = -(-steps // self.steps)
        wall = time.perf_counter()
        cpu = time.process_time()
        for _ in range(calls):
            self.state, _ = self.update(self.state, self.x)
        jax.block_until_ready(self.state)
        return {
            "steps": calls * self.steps,
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
        }


def serve():
    """Answers the requests on the standard input."""
    contestants = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "program" in request:
            start, x = load(request["start"])
            program = PROGRAMS[request["program"]](start, **request["options"])
            makers = {
                "step": functools.partial(Training, program, x, 1),
                "scan": functools.partial(Training, program, x, BLOCK),
            }
            contestants.clear()
            reply = {"losses": losses(program, x)}
        else:
            name = request["contestant"]
            if name not in contestants:
                contestants[name] = makers[name]()
            reply = contestants[name].take(request["steps"])
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    serve()

"""NumPyro's side of ``mnist_epoch.py``: a VAE of MNIST, each epoch in one ``lax.scan``.

    python benchmarks/numpyro_epoch.py IMAGES EPOCHS

It is the training that a NumPyro user writes for speed: the images are on the device, and one
jitted function draws the order of an epoch, takes all its steps, and returns the mean ELBO. The
network, its initial weights, the batches, the bound and the optimizer are those of
``mnist_epoch.py``. The figures are printed as JSON: the ELBO of each epoch in nats per data
point, and the seconds from the arrays to the last epoch's ELBO, compilation included.
"""

import functools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer import TraceMeanField_ELBO
from numpyro_steps import autoencoder, encoder, logits_of, standard_normal, svi_of

BATCH = 100
LATENT = 64
HIDDEN = 512


class GreyBernoulli(dist.BernoulliLogits):
    """The cross-entropy of grey values, which have no density under NumPyro's Bernoulli."""

    support = dist.constraints.unit_interval

    def log_prob(self, value):
        return value * self.logits - jax.nn.softplus(self.logits)


def grey_vae(start):
    """The MLP VAE of grey pixels."""

    def likelihood(p, z):
        return GreyBernoulli(logits_of(p, z)).to_event(1)

    return autoencoder(
        start, standard_normal(start), encoder, likelihood, TraceMeanField_ELBO()
    )


def layer(key, name, inputs, outputs, variance):
    """Uniform weights of this variance, and zero biases."""
    bound = (3 * variance) ** 0.5
    weight = random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound)
    return {f"{name}.weight": weight, f"{name}.bias": jnp.zeros(outputs)}


def trunk(key, name, inputs):
    """Two hidden layers, as He et al. (2015) initialize them."""
    first, second = random.split(key)
    return {
        **layer(first, f"{name}.0", inputs, HIDDEN, 2 / inputs),
        **layer(second, f"{name}.2", HIDDEN, HIDDEN, 2 / HIDDEN),
    }


def initial_weights(key, pixels):
    """The weights of model and guide; the head of the scale starts at zero."""
    keys = random.split(key, 4)
    p = trunk(keys[0], "likelihood.trunk.layers", LATENT)
    p |= layer(keys[1], "likelihood.heads.logits", HIDDEN, pixels, 2 / (HIDDEN + pixels))
    q = trunk(keys[2], "posterior.trunk.layers", pixels)
    q |= layer(keys[3], "posterior.heads.loc", HIDDEN, LATENT, 2 / (HIDDEN + LATENT))
    q |= layer(keys[3], "posterior.heads.scale", HIDDEN, LATENT, 0.0)
    return {"p": p, "q": q}


def train(images, epochs):
    """Returns the ELBO of each epoch."""
    images = jnp.array(images)
    svi = svi_of(grey_vae(initial_weights(random.key(0), images.shape[1])))

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state, key, images):
        order = random.permutation(key, len(images)).reshape(-1, BATCH)
        state, losses = lax.scan(
            lambda state, rows: svi.update(state, images[rows]), state, order
        )
        return state, -losses.mean() / BATCH

    state = svi.init(random.key(1), images[:BATCH])
    elbos = []
    for key in random.split(random.key(2), epochs):
        state, elbo = epoch(state, key, images)
        elbos.append(elbo)
    return [float(elbo) for elbo in elbos]


def main():
    images = np.load(sys.argv[1])
    start = time.perf_counter()
    elbos = train(images, int(sys.argv[2]))
    print(json.dumps({"seconds": time.perf_counter() - start, "elbo": elbos}))


if __name__ == "__main__":
    main()

"""Codes of data points, and values in the place of gaps."""

__all__ = ["check_codes", "codes_of", "filled"]

from typing import TYPE_CHECKING

import tarspyro
from tarspyro.commands.methods.forms import Part
from tarspyro.commands.methods.reports import Trained

if TYPE_CHECKING:
    from torch import Tensor

# Runs of the guide over which the codes of steps are averaged.
_RUNS = 20
# Codes for each row, by whose weights the values of gaps are averaged or drawn.
_PARTICLES = 100
# Rows at once.
_ROWS = 100


def check_codes(t: Trained) -> None:
    """Raises a ``ValueError`` if the method has no codes of data points."""
    if t.run.guide is None or not t.method.codes:
        raise ValueError(
            f"the run holds a method, {t.method.name}, that has no codes of data points: train"
            " another method, such as vae."
        )


def codes_of(t: Trained, part: Part) -> "Tensor":
    """Returns the posterior mean of each data point; of a sequence, or of a painting in steps,
    that of every step, of shape ``(N, T, *event)``.
    """
    if t.method.form.sequences:
        return _of_steps(t, part, part[0].shape[1])
    steps = t.method.options.get("steps")
    if steps is not None:
        return _of_steps(t, part, steps)
    codes: Tensor = tarspyro.evaluate.embed(t.guide, part, site=t.method.latent_site)
    return codes


def _of_steps(t: Trained, part: Part, length: int) -> "Tensor":
    """The mean of a step's code is averaged over draws of the codes before it."""
    import torch
    from pyro import poutine

    from tarspyro.infer.traces import sample_sites
    from tarspyro.scopes import evaluating, preserved_rng

    device = next(t.guide.parameters()).device
    batches = zip(*(values.to(device).split(_ROWS) for values in part), strict=True)
    found = []
    with preserved_rng(seed=0), evaluating(t.guide):
        for batch in batches:
            total = torch.zeros(())
            for _ in range(_RUNS):
                sites = dict(sample_sites(poutine.trace(t.guide).get_trace(*batch)))
                means = [sites[f"z_{step}"]["fn"].mean.cpu() for step in range(length)]
                total = total + torch.stack(means, 1) / _RUNS
            found.append(total)
    return torch.cat(found)


def filled(t: Trained, x: "Tensor", *, mean: bool, seed: int) -> "Tensor":
    r"""Returns x with values in the place of NaN.

    A pair that was trained on gaps gives them by importance sampling (Mattei and Frellsen
    2019, arXiv:1812.02633, eq. 12), with codes :math:`z_k \sim q(z \mid x_o)`,

    .. math:: \mathbb{E}[x_m \mid x_o] \approx
              \sum_k \frac{w_k}{\sum_l w_l} \mathbb{E}[x_m \mid z_k], \qquad
              w = \frac{p(x_o \mid z) \, p(z)}{q(z \mid x_o)}

    and any other by rounds of draws, see ``tarspyro.evaluate.impute``.

    Arguments:
        t: The trained pair, of x alone.
        x: The data.
        mean: Whether to return means instead of draws.
        seed: The seed of the draws.
    """
    import torch

    from tarspyro.scopes import evaluating, preserved_rng

    layout = t.data.layout
    if layout is None or not layout.gaps:
        done: Tensor = tarspyro.evaluate.impute(
            t.model,
            t.guide,
            x,
            ~x.isnan(),
            mean=mean,
            num_samples=20 if mean else None,
            seed=seed,
        )
        return done
    device = next(t.guide.parameters()).device
    with preserved_rng(seed), evaluating(t.model, t.guide):
        parts = [_filled(t, batch.to(device), mean).cpu() for batch in x.split(_ROWS)]
    return torch.cat(parts)


def _filled(t: Trained, x: "Tensor", mean: bool) -> "Tensor":
    import torch

    from tarspyro.infer.traces import sample_sites, trace_pair

    many = x.repeat_interleave(_PARTICLES, 0)
    model_trace, guide_trace = trace_pair(t.model, t.guide, (many,), {})
    log_w = torch.zeros(len(many), device=x.device)
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        for _, site in sample_sites(trace):
            log_w = log_w + sign * site["fn"].log_prob(site["value"])

    of_x = dict(sample_sites(model_trace))[t.method.site]["fn"]
    values = of_x.mean if mean else of_x.sample()
    values = values.reshape(len(x), _PARTICLES, *x.shape[1:])
    weights = log_w.reshape(len(x), _PARTICLES).softmax(1)
    if mean:
        chosen = (weights.reshape(*weights.shape, *[1] * (x.dim() - 1)) * values).sum(1)
    else:
        drawn = torch.multinomial(weights, 1)[:, 0]
        chosen = values[torch.arange(len(x), device=x.device), drawn]
    return x.where(~x.isnan(), chosen)

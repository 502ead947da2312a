"""Multimodal pairs: log-likelihoods of some modalities given others, what is missing drawn,
and whether it agrees.
"""

__all__ = ["coherence", "impute_modalities", "multimodal_log_likelihood"]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from tarspyro.arguments import as_count, format_value
from tarspyro.conditional import distribution_mean
from tarspyro.data.modalities import modalities_of
from tarspyro.evaluate.batching import by_batch
from tarspyro.evaluate.codes import sample
from tarspyro.evaluate.likelihood import LogLikelihood, given_by, log_likelihood
from tarspyro.infer.traces import name_of
from tarspyro.inputs import count_rows, each
from tarspyro.types import Program

Names = str | Sequence[str]


def multimodal_log_likelihood(
    model: Program,
    guide: Program,
    x: Sequence[Any],
    *,
    of: Names | None = None,
    given: Names = (),
    encoded: Names | None = None,
    num_particles: int = 1000,
    errors: bool = False,
    seed: int | None = None,
) -> Any:
    r"""Estimates the log-likelihood of some modalities, given others or not, by importance
    sampling, in nats.

    .. math:: \log p(x_A) \approx \log \frac{1}{K} \sum_{k=1}^K \frac{p(z_k) \prod_{m \in A} p(x_m \mid z_k)}
              {q(z_k \mid x_C)}, \quad z_k \sim q(z \mid x_C), \qquad
              \log p(x_A \mid x_B) = \log p(x_A, x_B) - \log p(x_B)

    With every modality in A it is the joint log-likelihood, with some the marginal one; both
    are lower bounds in expectation. The conditional one is the difference of two such
    estimates, from separate draws: it is no bound, since what the second falls short of the
    truth is added to it. It is not E[log p(x_A | z)] of codes z ~ q(z | x_B), a
    reconstruction.

    Any q will do that reaches all likely codes: with ``encoded`` the guide of all modalities
    serves a marginal of one, as in the experiments of Suzuki et al. (2016, arXiv:1611.01891).

    Arguments:
        model: The model, such as ``models.JMVAE``.
        guide: The guide.
        x: The modalities, in order, and after them the mask of rows, if there is one.
        of: A, the names of sites such as ``"x_1"`` or ``["x_1", "x_2"]``; all that are not
            given if None.
        given: B, likewise.
        encoded: C, what the guide sees in every term; what is in the term if None.
        num_particles: K, the number of draws for each data point.
        errors: Whether to return a tuple (log_likelihood, standard_error,
            effective_sample_size); of a conditional one the latter is the smaller of the two
            terms'.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        One number for each data point, or three: an array for arrays, a tensor for tensors.

    Raises:
        ValueError: If a name is that of no modality, or is both in ``of`` and in ``given``.
        InputError: If the data does not fit the likelihood.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> likelihoods = [Conditional(dist.Normal, MLP(2, []), size) for size in (4, 3)]
        >>> p = models.MVAE(default_prior(dist.Normal, 2), likelihoods)
        >>> q = guides.MVAE([Conditional(dist.Normal, MLP(size, []), 2) for size in (4, 3)], p.prior)
        >>> x = torch.zeros(5, 4), torch.zeros(5, 3)
        >>> multimodal_log_likelihood(p, q, x, of="x_2", given="x_1", num_particles=10).shape
        torch.Size([5])
    """
    names = _names(model, x)
    below = _positions("given", given, names)
    chosen = (
        [m for m in range(len(names)) if m not in below]
        if of is None
        else _positions("of", of, names)
    )
    if not chosen or set(chosen) & set(below):
        raise ValueError(
            f"of must name modalities that are not given, got of={of!r} and given={given!r}."
        )
    seen = None if encoded is None else _positions("encoded", encoded, names)

    def estimate(observed: Sequence[int], seed: int | None) -> LogLikelihood:
        p = _Restricted(model, [*observed, len(names)])
        q = _Restricted(guide, [*(observed if seen is None else seen), len(names)])
        found: LogLikelihood = log_likelihood(
            p, q, tuple(x), num_particles=num_particles, errors=True, seed=seed
        )
        return found

    result = estimate([*chosen, *below], seed)
    if below:
        # Other draws than those of the first term, so that the errors are independent and add
        # up.
        less = estimate(below, None if seed is None else seed + 1)
        result = given_by(result, less)
    return result if errors else result.log_likelihood


def impute_modalities(
    model: Program,
    guide: Program,
    x: Sequence[Any],
    *,
    num_rounds: int = 0,
    mean: bool = False,
    seed: int | None = None,
) -> dict[str, Any]:
    r"""Draws the modalities that are missing, given those that are there.

    .. math:: z \sim q(z \mid x_{\text{given}}), \quad x_{\text{missing}} \sim p(x_{\text{missing}} \mid z)

    With ``num_rounds`` the guide then sees what was drawn as if it were given, and both are
    drawn again, so many times. This is for guides that cannot do without a modality, as
    ``guides.JMVAE`` of one posterior, which gets zeros at first. With the true posterior as
    the guide the rounds are a Gibbs sampler, whose law comes closer to p(x_missing | x_given)
    with each of them. (Rezende et al. 2014, arXiv:1401.4082.)

    Arguments:
        model: The model, such as ``models.JMVAE``.
        guide: The guide.
        x: The modalities, in order, with None for those that are missing; and after them the
            mask of rows, if there is one.
        num_rounds: How many times the drawn modalities go back into the guide.
        mean: Return the means of what is missing, at the last code, in place of draws.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        All modalities by name, with what is given as it was: arrays for arrays, tensors for
        tensors.

    Raises:
        InputError: If the data or the mask does not fit the pair.
        NotImplementedError: If a mean is asked for that has no closed form.
        ValueError: If ``num_rounds`` is negative.
    """
    num_rounds = as_count("num_rounds", num_rounds, 0)
    names = _names(model, x)

    def drawn(*data: Tensor | None) -> dict[str, Tensor]:
        given, present = modalities_of(model, data, len(names))
        complete: Any = data
        for _ in range(num_rounds + 1):
            code = poutine.trace(guide).get_trace(*complete)
            # Without data the model generates all modalities, here of the guide's code.
            trace: Any = poutine.trace(poutine.replay(model, trace=code)).get_trace(
                batch_size=count_rows(data)
            )
            complete = _filled(given, present, [trace.nodes[name]["value"] for name in names])
        if mean:
            complete = _filled(
                given, present, [distribution_mean(trace.nodes[name]["fn"]) for name in names]
            )
        return dict(zip(names, complete, strict=True))

    found: dict[str, Any] = by_batch(drawn, model, guide, tuple(x), seed=seed, check=True)
    return found


def coherence(
    model: Program,
    guide: Program,
    x: Sequence[Any],
    classifiers: Sequence[Callable[[Tensor], Tensor]],
    *,
    labels: Any = None,
    num_samples: int = 1000,
    num_rounds: int = 0,
    mean: bool = True,
    seed: int | None = None,
) -> dict[str, float]:
    """Returns how often modalities that are generated together, or one from another, are of
    the same class.

    Joint coherence is the share of draws from the model in which all modalities are of one
    class, cross-coherence that of data points of which another modality, drawn by
    ``impute_modalities`` from one alone, is of the class that this one has. (Shi et al. 2019,
    arXiv:1911.03393.)

    Arguments:
        model: The model, such as ``models.MVAE``.
        guide: The guide.
        x: The modalities, in order, none of them None.
        classifiers: For each modality a function from its rows to classes, integers of shape
            (N,).
        labels: The classes of the data points; what the classifier of the given modality says
            if None.
        num_samples: How many draws from the model.
        num_rounds: See ``impute_modalities``.
        mean: Whether to classify the means of what is generated, as papers do, in place of
            draws.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        Shares between 0 and 1: ``"x_1, x_2"`` for all modalities jointly, ``"x_2 | x_1"`` for
        x_2 drawn from x_1.

    Raises:
        ValueError: If there are not as many classifiers as modalities.
    """
    names = _names(model, x)
    if len(classifiers) != len(names):
        raise ValueError(
            f"classifiers must be one for each of the {len(names)} modalities, got"
            f" {len(classifiers)}."
        )
    generated = sample(model, num_samples, site=names, mean=mean, seed=seed)
    classes = torch.stack(
        [
            classify(generated[name]).cpu()
            for name, classify in zip(names, classifiers, strict=True)
        ]
    )
    shares = {", ".join(names): _share((classes == classes[0]).all(0))}
    tensors = each(torch.as_tensor, x)
    for m, source in enumerate(names):
        alone = [value if i == m else None for i, value in enumerate(tensors)]
        other = impute_modalities(
            model, guide, alone, num_rounds=num_rounds, mean=mean, seed=seed
        )
        wanted = (
            classifiers[m](other[source]) if labels is None else torch.as_tensor(labels)
        ).cpu()
        for i, name in enumerate(names):
            if i != m:
                shares[f"{name} | {source}"] = _share(
                    classifiers[i](other[name]).cpu() == wanted
                )
    return shares


class _Restricted(nn.Module):
    """A program that sees some of its arguments, with None in the place of the others."""

    def __init__(self, program: Program, positions: Sequence[int]) -> None:
        super().__init__()
        self.program, self.positions, self.__name__ = program, positions, name_of(program)

    def forward(self, *data: Tensor | None) -> Any:
        return self.program(
            *(value if m in self.positions else None for m, value in enumerate(data))
        )


def _names(model: Program, x: Sequence[Any]) -> list[str]:
    """The names of the modalities: as many as the model has likelihoods, or, of a function, as
    there is data.
    """
    return [f"x_{m + 1}" for m in range(len(getattr(model, "likelihoods", x)))]


def _positions(argument: str, chosen: Names, names: Sequence[str]) -> list[int]:
    listed = [chosen] if isinstance(chosen, str) else list(chosen)
    for name in listed:
        if name not in names:
            raise ValueError(
                f"{argument} must name modalities ({', '.join(names)}), got"
                f" {format_value(name)}."
            )
    return [names.index(name) for name in listed]


def _filled(
    given: Sequence[Tensor | None], present: Sequence[Tensor | None], drawn: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """What was drawn, but for the modalities and rows that are given."""
    filled = []
    for value, rows, other in zip(given, present, drawn, strict=True):
        if value is not None and rows is not None:
            value = value.where(rows.reshape(-1, *[1] * (value.dim() - 1)), other)
        filled.append(other if value is None else value)
    return tuple(filled)


def _share(agreement: Tensor) -> float:
    return agreement.double().mean().item()

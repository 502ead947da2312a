"""Multimodal pairs: conditional log-likelihoods, imputed modalities, coherence."""

__all__ = ["coherence", "impute_modalities", "multimodal_log_likelihood"]

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution

from tarspyro.arguments import as_count, as_seed, format_value
from tarspyro.conditional import mean_or_mode
from tarspyro.data.modalities import modalities_of
from tarspyro.evaluate.batching import Array, map_batches
from tarspyro.evaluate.likelihood import LogLikelihood, difference, log_likelihood
from tarspyro.evaluate.sampling import sample
from tarspyro.infer.traces import name_of
from tarspyro.inputs import count_rows, each
from tarspyro.types import Argument, Arguments, ArrayLike, Program

# A site, or several.
Names: TypeAlias = str | Sequence[str]
# The modalities in order, and after them the mask of rows, if there is one.
Modalities: TypeAlias = Sequence[ArrayLike | None]


def multimodal_log_likelihood(
    model: Program,
    guide: Program,
    x: Modalities,
    *,
    of: Names | None = None,
    given: Names = (),
    encoded: Names | None = None,
    num_particles: int = 1000,
    errors: bool = False,
    seed: int | None = None,
) -> Any:
    r"""Estimates the log-likelihood of some modalities, optionally given others, in nats.

    By importance sampling:

    .. math:: \log p(x_A) \approx \log \frac{1}{K} \sum_{k=1}^K
              \frac{p(z_k) \prod_{m \in A} p(x_m \mid z_k)}{q(z_k \mid x_C)}, \quad
              z_k \sim q(z \mid x_C), \qquad
              \log p(x_A \mid x_B) = \log p(x_A, x_B) - \log p(x_B)

    The joint log-likelihood (A has all modalities) and the marginal ones are lower bounds in
    expectation. The conditional one is the difference of two estimates from separate draws. It
    is not a bound, because the error of the second term is added. It is not
    E[log p(x_A | z)] of codes z ~ q(z | x_B) either, which is a reconstruction term.

    Any q serves that reaches all likely codes: with ``encoded`` the guide of all modalities
    can estimate the marginal of one, as in the experiments of Suzuki et al. (2016,
    arXiv:1611.01891).

    Arguments:
        model: The model, such as ``models.JMVAE``.
        guide: The guide.
        x: The modalities, in order, and after them the mask of rows, if there is one.
        of: A, the names of sites such as ``"x_1"`` or ``["x_1", "x_2"]``; if None, all that
            are not in ``given``.
        given: B, likewise.
        encoded: C, the modalities that the guide sees in both terms; if None, it sees those of
            the term.
        num_particles: K, the number of draws for each data point.
        errors: Whether to return a tuple (log_likelihood, standard_error,
            effective_sample_size), of conditional log-likelihoods with the smaller of the two
            terms' effective sample sizes.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        One number for each data point, or three: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        ValueError: If a name is not a modality, or is both in ``of`` and in ``given``.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> likelihoods = [Conditional(dist.Normal, MLP(2, []), size) for size in (4, 3)]
        >>> p = models.MVAE(default_prior(dist.Normal, 2), likelihoods)
        >>> encoders = [Conditional(dist.Normal, MLP(size, []), 2) for size in (4, 3)]
        >>> q = guides.MVAE(encoders, p.prior)
        >>> x = torch.zeros(5, 4), torch.zeros(5, 3)
        >>> conditional = multimodal_log_likelihood(p, q, x, of="x_2", given="x_1")
        >>> conditional.shape
        torch.Size([5])
    """
    names = _names(model, x)
    condition = _positions("given", given, names)
    if of is None:
        chosen = [m for m in range(len(names)) if m not in condition]
    else:
        chosen = _positions("of", of, names)
    if not chosen or set(chosen) & set(condition):
        raise ValueError(
            f"of must name modalities that are not given, got of={of!r} and given={given!r}."
        )
    seen = None if encoded is None else _positions("encoded", encoded, names)
    mask = len(names)

    def estimate(observed: Sequence[int], seed: int | None) -> LogLikelihood:
        p = _Restricted(model, [*observed, mask])
        q = _Restricted(guide, [*(observed if seen is None else seen), mask])
        found: LogLikelihood = log_likelihood(
            p, q, tuple(x), num_particles=num_particles, errors=True, seed=seed
        )
        return found

    result = estimate([*chosen, *condition], seed)
    if condition:
        # Another seed makes the two estimates independent, so that their variances add up.
        other = None if seed is None else as_seed(seed) + 1
        result = difference(result, estimate(condition, other))
    return result if errors else result.log_likelihood


def impute_modalities(
    model: Program,
    guide: Program,
    x: Modalities,
    *,
    num_rounds: int = 0,
    mean: bool = False,
    seed: int | None = None,
) -> dict[str, Array]:
    r"""Draws the missing modalities given the others.

    .. math:: z \sim q(z \mid x_{\text{given}}), \quad
              x_{\text{missing}} \sim p(x_{\text{missing}} \mid z)

    In each of ``num_rounds`` rounds the drawn modalities go back into the guide, and code and
    modalities are drawn again. This is for guides that need every modality, such as
    ``guides.JMVAE`` with one posterior, which sees zeros at first. If the guide is the true
    posterior, the rounds are a Gibbs sampler, whose distribution tends to
    p(x_missing | x_given). (Rezende et al. 2014, arXiv:1401.4082.)

    Arguments:
        model: The model, such as ``models.JMVAE``.
        guide: The guide.
        x: The modalities, in order, with None for missing ones, and after them the mask of
            rows, if there is one.
        num_rounds: The number of times that the drawn modalities go back into the guide.
        mean: Whether to return the means of the missing modalities at the last code instead of
            draws.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        All modalities by name, the given ones unchanged: arrays for arrays, tensors for
        tensors.

    Raises:
        InputError: If the data or the mask does not fit the pair.
        NotImplementedError: If ``mean`` is true and a mean has no closed form.
        ValueError: If ``num_rounds`` is negative.
    """
    num_rounds = as_count("num_rounds", num_rounds, 0)
    names = _names(model, x)

    def drawn(*batch: Argument) -> dict[str, Array]:
        given, present = modalities_of(model, batch, len(names))
        complete: Arguments = batch
        for _ in range(num_rounds + 1):
            guide_trace = poutine.trace(guide).get_trace(*complete)
            # Without data the model generates all modalities, from the guide's code.
            generating = poutine.trace(poutine.replay(model, trace=guide_trace))
            sites = generating.get_trace(batch_size=count_rows(batch)).nodes
            values = [torch.as_tensor(sites[name]["value"]) for name in names]
            complete = _filled(given, present, values)
        if mean:
            means = [mean_or_mode(cast(Distribution, sites[name]["fn"])) for name in names]
            complete = _filled(given, present, means)
        return cast("dict[str, Array]", dict(zip(names, complete, strict=True)))

    return map_batches(drawn, (model, guide), tuple(x), seed=seed, check=True)


def coherence(
    model: Program,
    guide: Program,
    x: Modalities,
    classifiers: Sequence[Callable[[Tensor], Tensor]],
    *,
    labels: ArrayLike | None = None,
    num_samples: int = 1000,
    num_rounds: int = 0,
    mean: bool = True,
    seed: int | None = None,
) -> dict[str, float]:
    """Returns the shares of generated modalities that agree in their class.

    Joint coherence is the share of draws from the model whose modalities are all of one class.
    Cross-coherence is the share of data points for which a modality, drawn from another one by
    ``impute_modalities``, is of the class of that other one. (Shi et al. 2019,
    arXiv:1911.03393.)

    Arguments:
        model: The model, such as ``models.MVAE``.
        guide: The guide.
        x: The modalities, in order, none of them None.
        classifiers: For each modality a function from its rows to classes, integers of shape
            (N,).
        labels: The classes of the data points; if None, the classifier of the given modality
            predicts them.
        num_samples: The number of draws from the model.
        num_rounds: See ``impute_modalities``.
        mean: Whether to classify means, as papers do, instead of draws.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        Shares between 0 and 1: ``"x_1, x_2"`` for all modalities jointly, ``"x_2 | x_1"`` for
        x_2 drawn from x_1.

    Raises:
        ValueError: If the number of classifiers is not that of the modalities.
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
        imputed = impute_modalities(
            model, guide, alone, num_rounds=num_rounds, mean=mean, seed=seed
        )
        found = [
            classify(torch.as_tensor(imputed[name])).cpu()
            for name, classify in zip(names, classifiers, strict=True)
        ]
        wanted = found[m] if labels is None else torch.as_tensor(labels).cpu()
        for i, name in enumerate(names):
            if i != m:
                shares[f"{name} | {source}"] = _share(found[i] == wanted)
    return shares


class _Restricted(nn.Module):
    """A program that sees some of its arguments, and None instead of the others."""

    def __init__(self, program: Program, positions: Sequence[int]) -> None:
        super().__init__()
        self.program = program
        self.positions = positions
        self.__name__ = name_of(program)

    def forward(self, *data: Argument) -> object:
        return self.program(
            *(value if m in self.positions else None for m, value in enumerate(data))
        )


def _names(model: Program, x: Modalities) -> list[str]:
    """Returns the names of the modalities.

    There are as many as the model has likelihoods, or, if it is a function, parts of the data.
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
    given: Sequence[Argument], present: Sequence[Argument], drawn: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Returns the drawn modalities, replaced by the given modalities and rows."""
    filled = []
    for value, rows, other in zip(given, present, drawn, strict=True):
        if value is not None and rows is not None:
            value = value.where(rows.reshape(-1, *[1] * (value.dim() - 1)), other)
        filled.append(other if value is None else value)
    return tuple(filled)


def _share(agreement: Tensor) -> float:
    return agreement.double().mean().item()

"""Antithetic pairs of binary and categorical draws, and their gradient, DisARM."""

__all__ = ["antithetic_pair", "disarm_score"]

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from pyro.distributions import (
    Bernoulli,
    Categorical,
    OneHotCategorical,
)
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.functional import one_hot

from tarspyro.infer.bounds.enumeration import Term
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import (
    PairError,
    Site,
    drawn_of,
    guide_terms,
    innermost,
    particle_plate,
    plates_of,
    trace_pair,
)
from tarspyro.types import Program

_Discrete: TypeAlias = Bernoulli | Categorical | OneHotCategorical


def antithetic_pair(
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    particles: int,
    structure: Structure,
) -> tuple[Trace, Trace]:
    """Runs the guide, whose second half of particles mirrors the first, then the model.

    A Bernoulli unit of a particle is one if a uniform number u is below its probability, that of
    the mirrored particle if 1 - u is. A categorical unit is a path down a binary tree of its
    classes, with such a pair of numbers at each fork, until the two paths part.

    Returns:
        The trace of the model, and that of the guide.

    Raises:
        PairError: If the guide draws anything but one Bernoulli or categorical site.
    """
    nesting = structure.nesting

    def mirrored(*args: object, **kwargs: object) -> object:
        with _Antithetic(-nesting - 1):
            return particle_plate(guide, particles, nesting)(*args, **kwargs)

    in_plate = particle_plate(model, particles, nesting)
    model_trace, guide_trace = trace_pair(
        in_plate,
        mirrored,
        args,
        kwargs,
        plate_nesting=nesting + 1,
        enumerate_model=bool(structure.enumerated),
    )
    _check(guide_trace)
    return model_trace, guide_trace


def _check(guide_trace: Trace) -> None:
    """Raises unless a guide draws one Bernoulli or categorical site."""
    drawn = drawn_of(guide_terms(guide_trace))
    families = {name: innermost(site["fn"]) for name, site in drawn.items()}
    if len(drawn) != 1 or not all(isinstance(one, _Discrete) for one in families.values()):
        found = ", ".join(f"{name!r} ({type(one).__name__})" for name, one in families.items())
        raise PairError(
            "gradient='disarm' needs a guide that draws one Bernoulli or categorical site, and"
            f" it draws {found or 'nothing'}: put all units into one site, or take"
            " gradient='pathwise'."
        )
    for name, site in drawn.items():
        if site["infer"].get("enumerate") == "parallel":
            raise PairError(
                f"gradient='disarm' draws {name!r}, which the guide enumerates: take"
                " gradient='pathwise'."
            )


class _Antithetic(Messenger):
    """Draws Bernoulli and categorical sites in antithetic pairs."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def _pyro_sample(self, msg: Any) -> None:
        family = innermost(msg["fn"])
        if msg["is_observed"] or msg["done"] or not isinstance(family, _Discrete):
            return
        shape = msg["fn"].batch_shape + msg["fn"].event_shape
        dim = self.dim - msg["fn"].event_dim
        if isinstance(family, Bernoulli):
            msg["value"] = _antithetic_bits(family.probs.detach().expand(shape), dim)
        elif isinstance(family, OneHotCategorical):
            probs = family.probs.detach().expand(shape)
            classes = _antithetic_classes(probs, dim)
            msg["value"] = one_hot(classes, probs.shape[-1]).to(probs.dtype)
        else:
            probs = family.probs.detach()
            msg["value"] = _antithetic_classes(probs.expand(*shape, probs.shape[-1]), dim - 1)
        msg["done"] = True


def _antithetic_bits(probs: Tensor, dim: int) -> Tensor:
    """Returns ones and zeros, of which the second half in a dimension mirrors the first."""
    u = torch.rand_like(probs.narrow(dim, 0, probs.shape[dim] // 2))
    return (torch.cat([u, 1 - u], dim) < probs).to(probs.dtype)


def _antithetic_classes(probs: Tensor, dim: int) -> Tensor:
    """Returns classes, of which the second half in a dimension mirrors the first."""
    count = probs.shape[-1]
    first, second = _leaves(probs, 0.0).chunk(2, dim)
    leaves = first.shape[-1]
    place = torch.zeros_like(first[..., 0], dtype=torch.long)
    mirrored = place
    together = place == mirrored

    while first.shape[-1] > 1:
        first = first.unflatten(-1, (2, -1))
        second = second.unflatten(-1, (2, -1))
        u = torch.rand_like(first[..., 0, 0])
        # A pair of opposite numbers serves one fork; forks after the parting have their own.
        opposite = torch.where(together, 1 - u, 1 - torch.rand_like(u))
        right = u < _share_of_right(first)
        mirrored_right = opposite <= _share_of_right(second)
        first = torch.where(right.unsqueeze(-1), first[..., 1, :], first[..., 0, :])
        second = torch.where(
            mirrored_right.unsqueeze(-1), second[..., 1, :], second[..., 0, :]
        )
        place = 2 * place + right
        mirrored = 2 * mirrored + mirrored_right
        together = together & (right == mirrored_right)

    # The leaf of class k is the integer below k leaves / count.
    return (torch.cat([place, mirrored], dim + 1) * count + leaves - 1) // leaves


def _share_of_right(halves: Tensor) -> Tensor:
    """Returns the probability of the right branch of a fork."""
    left, right = halves.sum(-1).unbind(-1)
    return right / (left + right)


def _leaves(values: Tensor, empty: float) -> Tensor:
    """Spreads values of the classes evenly over the leaves of a full binary tree."""
    count = values.shape[-1]
    leaves = 1 << (count - 1).bit_length()
    if leaves == count:
        return values
    place = torch.arange(count, device=values.device) * leaves // count
    spread = values.new_full((*values.shape[:-1], leaves), empty)
    return spread.index_copy(-1, place, values)


def disarm_score(guide_sites: Mapping[str, Site], particles: int, nesting: int) -> Term:
    r"""Returns numbers that take the place of the score function of antithetic draws.

    .. math:: \nabla_\alpha \mathbb{E}[f(b)] = \mathbb{E}\Big[ \tfrac{1}{2}
              \big( f(b) - f(\tilde b) \big) (b - \tilde b) \, \sigma(|\alpha|) \Big], \qquad
              b = [u < \sigma(\alpha)], \; \tilde b = [1 - u < \sigma(\alpha)]

    (Dong et al. 2020, arXiv:2006.10680, eq. 7; for classes Dong et al. 2021, arXiv:2106.08056.)
    The numbers of a pair are opposite, so the mean of the other particles, which ``surrogate``
    subtracts as a baseline, multiplies the gradient by K / (K - 1). This factor is taken out
    here.
    """
    (site,) = drawn_of(guide_sites.items()).values()
    value = site["value"]
    family = innermost(site["fn"])
    ndims = site["fn"].event_dim
    mirrored = value.roll(particles // 2, -nesting - 1 - ndims)
    if isinstance(family, Bernoulli):
        slope = (value - mirrored) * family.logits.detach().abs().sigmoid()
        score = slope * family.logits
    elif isinstance(family, OneHotCategorical):
        score = _score_of_classes(family.logits, value, mirrored)
        ndims -= 1
    else:
        classes = family.logits.shape[-1]
        score = _score_of_classes(
            family.logits, one_hot(value, classes), one_hot(mirrored, classes)
        )
    total: Tensor = score.sum(list(range(-ndims, 0))) if ndims else score
    return Term(total * ((particles - 1) / particles), plates_of(site))


def _score_of_classes(logits: Tensor, value: Tensor, mirrored: Tensor) -> Tensor:
    r"""Returns the number of a pair of one-hot draws.

    .. math:: \sum_l c_l \big( \log q_l(z) - \log q_l(\tilde z) \big)

    where log q_l is the log-probability of the branch that a draw takes at the fork in level l,
    and c_l is 1 after the paths have parted. Where they part it is the larger one of the
    branches' probabilities, and before that the difference is zero.
    """
    # The logarithm of an impossible class is finite, so that zero times it is zero.
    lowest = torch.finfo(logits.dtype).min / 4
    log_probs = torch.log_softmax(logits, -1).clamp(min=lowest)
    path = _leaves(log_probs, lowest), _leaves(value.to(log_probs.dtype), 0.0)
    mirror = path[0], _leaves(mirrored.to(log_probs.dtype), 0.0)
    score = torch.zeros_like(value[..., 0], dtype=log_probs.dtype)
    together = torch.ones_like(score)

    while path[0].shape[-1] > 1:
        path, fork, branch = _descend(*path)
        mirror, mirrored_fork, mirrored_branch = _descend(*mirror)
        difference = (fork * branch).sum(-1) - (mirrored_fork * mirrored_branch).sum(-1)
        larger = fork.detach().amax(-1).exp()
        score = score + torch.where(together > 0, larger, 1.0) * difference
        together = together * (branch * mirrored_branch).sum(-1)
    return score


def _descend(log_probs: Tensor, value: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Follows a one-hot draw through the uppermost fork of its tree.

    Returns:
        The log-probabilities and the draw in the branch that it takes; the log-probabilities of
        the two branches; and the one-hot branch.
    """
    log_probs = log_probs.unflatten(-1, (2, -1))
    value = value.unflatten(-1, (2, -1))
    fork = torch.log_softmax(log_probs.logsumexp(-1), -1)
    branch = value.sum(-1)
    rest = (log_probs * branch.unsqueeze(-1)).sum(-2), value.sum(-2)
    return rest, fork, branch

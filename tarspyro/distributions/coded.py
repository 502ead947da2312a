"""Priors over the codes of a codebook."""

__all__ = ["CodePrior", "Coded", "check_codes"]

from collections.abc import Callable

import torch
from pyro.distributions import Categorical
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from tarspyro.arguments import as_shape, format_value
from tarspyro.distributions.prior import as_prior, default_prior
from tarspyro.modules import Configurable
from tarspyro.nn.codebook import Codebook
from tarspyro.types import Shape


class Coded(TorchDistribution):
    r"""A distribution of the vectors of a codebook, given one of their indices.

    .. math:: p(z) = p(k(z)), \qquad k(z) = \arg\min_k \lVert z - e_k \rVert

    Its draws are maps of vectors, of shape ``(size, *positions)``, for indices of the shape
    ``positions``. It is a distribution over the codebook: the probability of a value is that of
    the codes nearest to its vectors.

    Arguments:
        indices: The distribution of the indices.
        codebook: The codebook.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    # The support is real, but only vectors of the codebook occur.
    has_probabilities = True

    def __init__(
        self, indices: Distribution, codebook: Codebook, validate_args: bool | None = None
    ) -> None:
        self.indices = indices
        self.codebook = codebook
        event = Size([codebook.size, *indices.event_shape])
        super().__init__(indices.batch_shape, event, validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Vectors of real numbers."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Shape, _instance: object = None) -> "Coded":
        """Returns the distribution with another batch shape."""
        return Coded(self.indices.expand(Size(batch_shape)), self.codebook)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of the codes in nats."""
        last = value.movedim(-len(self.event_shape), -1)
        return self.indices.log_prob(self.codebook.nearest(last))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns the codes of drawn indices."""
        with torch.no_grad():
            index = self.indices.sample(Size(sample_shape))
            return self.codebook.vectors(index).movedim(-1, -len(self.event_shape))


class CodePrior(Configurable):
    r"""A prior over the codes of a codebook, :math:`p(z) = p(k)`.

    Arguments:
        codebook: The codebook, which the guide's ``VectorQuantized`` shares.
        event_shape: The shape of z, ``(size, *positions)``.
        indices: The prior p(k) of the indices, such as an ``Autoregressive`` with the family
            ``Categorical`` over the positions; uniform if not given.

    Raises:
        TypeError: If ``codebook`` is none.
        ValueError: If ``event_shape`` does not begin with the size of a code; when called, if
            the prior of the indices is of another shape.

    Example:
        >>> prior = CodePrior(Codebook(16, 4), (4, 2, 2))
        >>> z = prior().sample((5,))
        >>> z.shape, prior().log_prob(z)[0]  # 4 log(1 / 16)
        (torch.Size([5, 4, 2, 2]), tensor(-11.0904))
    """

    def __init__(
        self,
        codebook: Codebook,
        event_shape: int | tuple[int, ...],
        indices: Distribution | Callable[..., Distribution] | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape("event_shape", event_shape)
        check_codes(codebook, self.event_shape)
        self.codebook = codebook
        positions = tuple(self.event_shape[1:])
        self.positions = positions
        logits = torch.zeros(*positions, codebook.num_codes)
        uniform = default_prior(
            Categorical, positions, param_shapes={"logits": tuple(logits.shape)}, logits=logits
        )
        self.indices = as_prior(uniform if indices is None else indices, "indices")

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the distribution of the codes."""
        indices = self.indices(*context)
        if tuple(indices.event_shape) != self.positions:
            raise ValueError(
                f"indices must be a distribution over the positions {self.positions}, got one of"
                f" shape {tuple(indices.event_shape)}."
            )
        return Coded(indices, self.codebook)

    def __repr__(self) -> str:
        return f"{self.indices!r} over {self.codebook!r}"


def check_codes(codebook: object, event_shape: Size) -> None:
    """Raises unless the codes of a codebook make up events of the shape.

    Raises:
        TypeError: If ``codebook`` is none.
        ValueError: If ``event_shape`` does not begin with the size of a code.
    """
    if not isinstance(codebook, Codebook):
        raise TypeError(
            "codebook must be a tarspyro.nn.Codebook, such as Codebook(64, 16), got"
            f" {format_value(codebook)}."
        )
    if event_shape[:1] != (codebook.size,):
        raise ValueError(
            f"event_shape must begin with the size of a code, {codebook.size}, got"
            f" {tuple(event_shape)}."
        )

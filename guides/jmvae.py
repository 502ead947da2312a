"""The joint multimodal variational autoencoder: the guide."""

__all__ = ["JMVAE"]

from collections.abc import Callable, Sequence

import pyro
from torch import Tensor, nn

from tarspyro.arguments import as_module_list
from tarspyro.data.modalities import modalities_of
from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class JMVAE(StochasticModule):
    r"""The inference half of a joint multimodal variational autoencoder.

    .. math:: q(z \mid x_1, \dots, x_M) \quad \text{and, of one modality alone,} \quad
              q_m(z \mid x_m)

    If a single modality is given and has a posterior of its own, z is drawn from it. Else z is
    drawn from the joint posterior, with zeros for missing modalities, whether they are None or
    masked. Without ``posteriors`` this is JMVAE-zero. With them it is JMVAE-kl, and
    ``ModalityKL`` trains them:

    .. math:: \mathcal{L} - \alpha \sum_m
              \mathrm{KL}(q(z \mid x_1, \dots, x_M) \,\|\, q_m(z \mid x_m))

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the posteriors' event shape.

    Arguments:
        posterior: The approximate posterior q(z | x_1, ..., x_M), such as a ``Conditional``
            whose trunk takes all modalities. Modalities may be missing if the trunk has the
            attribute ``in_shapes``, as ``MLP`` has.
        posteriors: The approximate posteriors q_1(z | x_1), ..., q_M(z | x_M), such as
            ``Conditional`` modules.

    Raises:
        TypeError: If ``posteriors`` is not a list of modules.
        ValueError: When called, if all modalities are missing, or one of unknown shape.

    References:
        Suzuki, Nakayama and Matsuo (2016), Joint Multimodal Learning with Deep Generative
        Models, arXiv:1611.01891.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> image = Conditional(dist.Normal, MLP(64, [32]), 2)
        >>> label = Conditional(dist.Normal, MLP(10, [8]), 2)
        >>> JMVAE(Conditional(dist.Normal, MLP([64, 10], [32]), 2), [image, label])
        JMVAE: q(z | x_1, x_2)
          posterior: q(z | x_1, x_2) = Normal(loc, scale) of shape (2,) from MLP(74 -> 32,
              ReLU)
          posteriors.0: q_1(z | x_1) = Normal(loc, scale) of shape (2,) from MLP(64 -> 32,
          ReLU) posteriors.1: q_2(z | x_2) = Normal(loc, scale) of shape (2,) from MLP(10 -> 8,
          ReLU)
    """

    density = "q"

    def __init__(
        self,
        posterior: Callable[..., Distribution],
        posteriors: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.posterior = as_conditional("posterior", posterior)
        self.posteriors = as_module_list(
            "posteriors", [] if posteriors is None else posteriors
        )
        self.shapes = getattr(getattr(posterior, "trunk", posterior), "in_shapes", None)
        count = len(self.posteriors or self.shapes or ())
        modalities = ", ".join(f"x_{m + 1}" for m in range(count)) or "x"
        self.factors = {"posterior": f"z | {modalities}"}

    def forward(self, *data: Tensor | None) -> Tensor:
        """Samples z given the modalities that are not None."""
        x, _ = modalities_of(self, data, len(self.posteriors or self.shapes or data))
        given = [(m, value) for m, value in enumerate(x) if value is not None]
        if not given:
            raise ValueError(
                "JMVAE needs at least one modality to infer z, got none: generate with the"
                " model instead."
            )
        m, first = given[0]
        with pyro.plate("data", len(first)):
            if len(given) == 1 and len(self.posteriors):
                return pyro.sample("z", self.posteriors[m](first))
            return pyro.sample("z", self.posterior(*self._with_zeros(x, first)))

    def _with_zeros(self, x: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
        if self.shapes is None and any(value is None for value in x):
            raise ValueError(
                "A modality is None, and posterior has no trunk with in_shapes, from which its"
                " shape would be known: give zeros in place of None."
            )
        shapes = self.shapes or [()] * len(x)
        zeros = [like.new_zeros(len(like), *shape) for shape in shapes]
        return [zeros[m] if value is None else value for m, value in enumerate(x)]

    def __repr__(self) -> str:
        own = [
            f"\n  posteriors.{m}: q_{m + 1}(z | x_{m + 1}) = {part}"
            for m, part in enumerate(self.posteriors)
        ]
        return super().__repr__() + "".join(own)

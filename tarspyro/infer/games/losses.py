"""Losses of the discriminator and the generator, as functions of the discriminator's score."""

__all__ = ["Divergence", "Hinge", "JensenShannon", "LeastSquares", "Wasserstein"]

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from tarspyro.arguments import check_number
from tarspyro.modules import Configurable


class Divergence(Configurable):
    """The losses of an adversarial game, each a function of the score D(x) that the
    discriminator gives x.

    Subclasses define ``real``, ``fake`` and ``generator``, which take scores and return losses
    of the same shape.

    Attributes:
        floor: A mean loss of the discriminator below which it has won, and the generator
            learns nothing from it.
    """

    floor = -math.inf

    def real(self, score: Tensor) -> Tensor:
        """Returns the discriminator's loss of real data."""
        raise NotImplementedError

    def fake(self, score: Tensor) -> Tensor:
        """Returns the discriminator's loss of fakes."""
        raise NotImplementedError

    def generator(self, score: Tensor) -> Tensor:
        """Returns the generator's loss of its fakes."""
        raise NotImplementedError

    def output(self, score: Tensor) -> Tensor:
        """Returns the output of the discriminator that the history records."""
        return score

    def penalty(
        self, discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
    ) -> Tensor | None:
        """Returns a further loss of the discriminator for each row; None for none."""
        return None


class JensenShannon(Divergence):
    r"""The game of Goodfellow et al. (2014, arXiv:1406.2661), with D the logit of being real.

    .. math:: \mathcal{L}_D = -\log \sigma(D(x)) - \log(1 - \sigma(D(\tilde{x}))), \qquad
              \mathcal{L}_G = -\log \sigma(D(\tilde{x})) \quad \text{or} \quad
              \log(1 - \sigma(D(\tilde{x})))

    The best discriminator is log p(x) - log q(x), for data of density p and fakes of density
    q. Its loss is 2 log 2 - 2 JS(p, q). Logarithms of sigmoids are softplus functions of the
    logits, which are finite everywhere: -log sigmoid(D) = softplus(-D), and
    -log(1 - sigmoid(D)) = softplus(D).

    Arguments:
        saturating: Whether the generator has the second loss, that of the minimax game (eq.
            1), whose gradient vanishes where the discriminator is sure. Otherwise it has the
            first loss, with the same fixed point.

    Example:
        >>> JensenShannon().generator(torch.tensor([-1000.0, 0.0]))
        tensor([1.0000e+03, 6.9315e-01])
    """

    floor = 1e-3

    def __init__(self, saturating: bool = False) -> None:
        super().__init__()
        self.saturating = saturating

    def real(self, score: Tensor) -> Tensor:
        return softplus(-score)

    def fake(self, score: Tensor) -> Tensor:
        return softplus(score)

    def generator(self, score: Tensor) -> Tensor:
        return -softplus(score) if self.saturating else softplus(-score)

    def output(self, score: Tensor) -> Tensor:
        """Returns the probability of being real."""
        return score.sigmoid()


class LeastSquares(Divergence):
    r"""Least squares (Mao et al. 2017, arXiv:1611.04076, eq. 9), with 1 for real and 0 for
    fake.

    .. math:: \mathcal{L}_D = \tfrac{1}{2} (D(x) - 1)^2 + \tfrac{1}{2} D(\tilde{x})^2, \qquad
              \mathcal{L}_G = \tfrac{1}{2} (D(\tilde{x}) - 1)^2
    """

    floor = 1e-3

    def real(self, score: Tensor) -> Tensor:
        return (score - 1) ** 2 / 2

    def fake(self, score: Tensor) -> Tensor:
        return score**2 / 2

    def generator(self, score: Tensor) -> Tensor:
        return (score - 1) ** 2 / 2


class Hinge(Divergence):
    r"""The hinge loss of spectral normalization (Miyato et al. 2018, arXiv:1802.05957, eqs. 16
    and 17).

    .. math:: \mathcal{L}_D = \max(0, 1 - D(x)) + \max(0, 1 + D(\tilde{x})), \qquad
              \mathcal{L}_G = -D(\tilde{x})
    """

    floor = 1e-3

    def real(self, score: Tensor) -> Tensor:
        return relu(1 - score)

    def fake(self, score: Tensor) -> Tensor:
        return relu(1 + score)

    def generator(self, score: Tensor) -> Tensor:
        return -score


class Wasserstein(Divergence):
    r"""The Wasserstein distance, with a penalty on the discriminator's gradient (Gulrajani et
    al. 2017, arXiv:1704.00028).

    .. math:: \mathcal{L}_D = D(\tilde{x}) - D(x)
              + \lambda (\|\nabla_{\hat{x}} D(\hat{x})\|_2 - 1)^2, \quad
              \hat{x} = \epsilon x + (1 - \epsilon) \tilde{x}, \quad \epsilon \sim U(0, 1),
              \qquad \mathcal{L}_G = -D(\tilde{x})

    The penalty is for each row, with the norm of its whole gradient. The loss estimates the
    distance only if the discriminator is near its best, so it needs several moves for each
    move of the generator: ``Adversarial(..., every=5)``. The discriminator must have no batch
    normalization, with which the gradient of a row depends on other rows.

    Arguments:
        weight: The weight lambda of the penalty. With 0 there is none, for a discriminator
            whose gradient is bounded by other means.

    Raises:
        ValueError: If the weight is negative.
    """

    def __init__(self, weight: float = 10.0) -> None:
        super().__init__()
        check_number("weight", weight, 0)
        self.weight = weight

    def real(self, score: Tensor) -> Tensor:
        return -score

    def fake(self, score: Tensor) -> Tensor:
        return score

    def generator(self, score: Tensor) -> Tensor:
        return -score

    def penalty(
        self, discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
    ) -> Tensor | None:
        """Returns the weight times (norm - 1) squared, at a random point between each row and
        a fake.
        """
        if not self.weight:
            return None
        shape = [len(real), *[1] * (real.dim() - 1)]
        epsilon = torch.rand(shape, device=real.device, dtype=real.dtype)
        with torch.enable_grad():  # an evaluation needs this gradient, too
            between = (epsilon * real + (1 - epsilon) * fake).detach().requires_grad_()
            # Scores of patches count by their mean, as in the other terms.
            scores = discriminator(between).reshape(len(real), -1).mean(1)
            (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
        penalty: Tensor = self.weight * (gradient.flatten(1).norm(dim=1) - 1) ** 2
        return penalty

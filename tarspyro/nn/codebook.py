"""A codebook: the vectors that vector quantization chooses from."""

__all__ = ["Codebook"]

import torch
from torch import Tensor

from tarspyro.arguments import as_count, check_number
from tarspyro.modules import Configurable

# A code is dead if it is used so many times less than on average.
_DEAD = 0.1


class Codebook(Configurable):
    r"""A codebook of K vectors, which follow the vectors that choose them.

    .. math:: k(v) = \arg\min_k \lVert v - e_k \rVert, \qquad e_k = m_k / n_k

    with moving averages of the sums :math:`m_k` and of the counts :math:`n_k` of the vectors
    that choose a code. A code that is hardly chosen is dead: it starts again at a vector of
    the batch. So the first batch decides where the codes start.

    Arguments:
        num_codes: The number of codes K.
        size: The size of a vector.
        decay: How much of the averages a step keeps, from 0 to 1.

    Raises:
        ValueError: If ``num_codes`` is below 2, or ``decay`` is out of range.

    References:
        Van den Oord et al. (2017), Neural Discrete Representation Learning, arXiv:1711.00937,
        appendix A.1.

    Example:
        >>> codebook = Codebook(3, 2)
        >>> codebook.update(torch.tensor([[0.0, 0.0], [5.0, 5.0], [0.0, 5.0]]))
        >>> index = codebook.nearest(torch.tensor([[4.0, 4.0]]))
        >>> codebook.vectors(index)
        tensor([[5., 5.]])
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, num_codes: int, size: int, decay: float = 0.99) -> None:
        super().__init__()
        self.num_codes = as_count("num_codes", num_codes, 2)
        self.size = as_count("size", size)
        check_number("decay", decay, 0, 1)
        self.decay = decay
        self.register_buffer("codes", torch.randn(self.num_codes, self.size))
        self.register_buffer("counts", torch.zeros(self.num_codes))
        self.register_buffer("sums", torch.zeros(self.num_codes, self.size))

    def nearest(self, values: Tensor) -> Tensor:
        """Returns the index of the code nearest to each vector, of shape ``(*,)``."""
        with torch.no_grad():
            flat = values.reshape(-1, self.size)
            distances = self.codes.square().sum(1) - 2 * flat @ self.codes.T
            return distances.argmin(1).reshape(values.shape[:-1])

    def vectors(self, index: Tensor) -> Tensor:
        """Returns the codes of indices, of shape ``(*, size)``."""
        return self.codes[index]

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Moves the codes towards the vectors that choose them, and restarts dead ones."""
        flat = values.detach().reshape(-1, self.size)
        chosen = self.nearest(flat).unsqueeze(1) == torch.arange(
            self.num_codes, device=flat.device
        )
        counts = torch.lerp(chosen.to(flat.dtype).sum(0), self.counts, self.decay)
        sums = torch.lerp(chosen.to(flat.dtype).T @ flat, self.sums, self.decay)

        average = len(flat) / self.num_codes
        first = self.counts.sum() == 0
        dead = (first | (counts < _DEAD * average)).unsqueeze(1)
        # Without replacement, unless there are fewer vectors than codes.
        order = torch.rand(len(flat), device=flat.device).argsort()
        places = torch.arange(self.num_codes, device=flat.device) % len(flat)
        fresh = flat[order[places]]
        counts = torch.where(dead.squeeze(1), average, counts)
        sums = torch.where(dead, average * fresh, sums)
        self.counts.copy_(counts)
        self.sums.copy_(sums)
        self.codes.copy_(sums / counts.unsqueeze(1))

    def __repr__(self) -> str:
        return f"Codebook({self.num_codes} codes of size {self.size})"

"""Modalities of a batch, and the mask of those that are observed."""

__all__ = [
    "modalities_of",
]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled


def modalities_of(
    half: Callable[..., Any], data: Sequence[torch.Tensor | None], count: int
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    """Returns the modalities among the arguments of a multimodal half, and which rows have
    each of them.

    After the modalities may come the mask of shape ``(B, modalities)``. Rows that lack a
    modality get zeros in it.

    Raises:
        ValueError: If there are fewer or more modalities, or the mask has another shape; where
            Pyro's validation is on, as in the checks before training and evaluation, if it
            holds anything but zeros and ones.
    """
    if len(data) not in (0, count, count + 1):
        name = getattr(half, "__name__", type(half).__name__)
        raise ValueError(
            f"{name} takes {count} modalities, and after them a mask where rows lack some, got"
            f" {len(data)} arguments: give None in place of what is not observed."
        )
    values, mask = (
        list(data[:count]) or [None] * count,
        data[count] if len(data) > count else None,
    )
    if mask is None:
        return values, [None] * count
    if mask.dim() != 2 or mask.shape[1] != count:
        raise ValueError(
            f"The mask must be of shape (rows, {count}), got {tuple(mask.shape)}."
        )
    # To look at the values waits for the device, which a step must not.
    if is_validation_enabled() and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            "The mask must hold booleans, or zeros and ones: true where a row has the"
            " modality."
        )
    present: list[torch.Tensor | None] = [column.bool() for column in mask.unbind(1)]
    for m, (value, rows) in enumerate(zip(values, present, strict=True)):
        if value is not None and rows is not None:
            values[m] = value.where(
                rows.reshape(-1, *[1] * (value.dim() - 1)), value.new_zeros(())
            )
    return values, present

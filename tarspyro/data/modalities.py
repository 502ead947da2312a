"""The modalities among a program's arguments, and which rows have them."""

__all__ = ["modalities_of"]

from collections.abc import Sequence

from pyro.infer.util import is_validation_enabled
from torch import Tensor

from tarspyro.types import Argument, Program


def modalities_of(
    half: Program, data: Sequence[Argument], count: int
) -> tuple[list[Argument], list[Tensor | None]]:
    """Returns the modalities among the arguments of a multimodal model or guide, and for each
    of them which rows have it (None for all rows).

    After the modalities may come a mask of shape (B, modalities), true where a row has the
    modality. A row that lacks a modality gets zeros in it.

    Raises:
        ValueError: If there are fewer or more modalities, or the mask has another shape. Where
            Pyro's validation is on, as in the checks before training and evaluation, also if
            the mask holds anything but zeros and ones.
    """
    if len(data) not in (0, count, count + 1):
        name = getattr(half, "__name__", type(half).__name__)
        raise ValueError(
            f"{name} takes {count} modalities, and after them a mask where rows lack some, got"
            f" {len(data)} arguments: give None in place of what is not observed."
        )
    values = list(data[:count]) or [None] * count
    mask = data[count] if len(data) > count else None
    if mask is None:
        return values, [None] * count
    if mask.dim() != 2 or mask.shape[1] != count:
        raise ValueError(
            f"The mask must be of shape (rows, {count}), got {tuple(mask.shape)}."
        )
    # Reading the values waits for the device, which a training step must not do.
    if is_validation_enabled() and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            "The mask must hold booleans, or zeros and ones: true where a row has the"
            " modality."
        )
    present = [column.bool() for column in mask.unbind(1)]
    for m, (value, rows) in enumerate(zip(values, present, strict=True)):
        if value is not None:
            along_rows = rows.reshape(-1, *[1] * (value.dim() - 1))
            values[m] = value.where(along_rows, value.new_zeros(()))
    return values, list[Tensor | None](present)

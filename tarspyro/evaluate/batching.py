"""Functions of a batch, over all of the data and over any number of particles, in bounded
memory.
"""

__all__ = ["by_batch", "chunks_of", "codes_of", "over_particles", "rows_at_once", "seeded"]

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from tarspyro.arguments import as_count, as_numbers, as_seed
from tarspyro.infer.matching import explaining
from tarspyro.infer.pairs import structure_of
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import check_program
from tarspyro.inputs import (
    as_arguments,
    as_float,
    binarized,
    check_binarizable,
    check_inputs,
    count_rows,
    each,
)
from tarspyro.programs import tensors_of
from tarspyro.scopes import evaluating, local_parameters, preserved_rng
from tarspyro.types import Program

# How many rows (data points times particles) are in memory at once.
_ROWS = 10_000


def rows_at_once(copies: int) -> int:
    """Returns how many rows may be in memory at once, each of them so many times."""
    return max(1, _ROWS // copies)


def chunks_of(num_particles: int, rows: int) -> Iterator[int]:
    """Yields how many particles of so many rows each may be in memory together, until there
    were all.
    """
    chunk = rows_at_once(rows)
    for start in range(0, num_particles, chunk):
        yield min(chunk, num_particles - start)


def over_particles(
    function: Callable[[tuple[Tensor, ...], int, Structure], Tensor],
    combine: Callable[[Tensor, Tensor], Tensor],
    model: Program,
    guide: Program,
    num_particles: int,
) -> Callable[..., Tensor]:
    """Returns what combines a function of a batch over chunks of particles, so that memory
    does not grow with them.

    Arguments:
        function: Takes the batch, the number of particles of a chunk, and the structure of the
            pair.
        combine: Takes the results of two chunks.
        model: The model.
        guide: The guide.
        num_particles: The number of particles of all chunks.
    """
    num_particles = as_count("num_particles", num_particles)
    structures: dict[Any, Structure] = {}

    def estimate(*arguments: Tensor) -> Tensor:
        shapes = tuple(None if part is None else part.shape for part in arguments)
        if shapes not in structures:
            structures[shapes] = structure_of(
                model, guide, arguments, {}, particles=num_particles, observed=True
            )
        counts = chunks_of(num_particles, count_rows(arguments))
        return functools.reduce(
            combine, (function(arguments, count, structures[shapes]) for count in counts)
        )

    return estimate


def by_batch(
    function: Callable[..., Any],
    program: Program | None,
    like: Program,
    x: Any,
    *,
    beside: Sequence[Tensor] = (),
    binarize: bool = False,
    seed: int | None = None,
    check: bool = False,
    batch_size: int = 100,
) -> Any:
    """Applies the function to batches on the device of ``like``; gives arrays for arrays,
    tensors on their device.

    The function returns a tensor, or several by name, with a row for each data point. The rows
    of the tensors ``beside`` the data are its last arguments. With ``check`` the data is
    compared with the likelihood of ``program`` first, as ``fit`` does.
    """
    if program is None or program is like:
        check_program("model or guide", like)
    else:
        check_program("model", program)
        check_program("guide", like)
    arguments = (codes_of(x, like),) if program is None else as_arguments(x, program, like)
    if arguments is None:
        raise ValueError("x must be in memory: tensors, arrays, a mapping of them or a Split.")
    rows = count_rows(arguments)
    for part in beside:
        if len(part) != rows:
            raise ValueError(
                f"what stands beside the data must have its {rows} rows, got shape"
                f" {tuple(part.shape)}."
            )
    if binarize:
        check_binarizable(arguments[0])
    parameter = next(like.parameters(), None) if isinstance(like, nn.Module) else None
    origin = tensors_of(arguments)[0].device
    device = origin if parameter is None else parameter.device
    results: list[Any] = []
    with (
        seeded(seed),
        pyro.validation_enabled(False),
        evaluating(program, like),
        local_parameters(),
    ):
        # The same seed gives the same pixels for every pair, however much randomness a pair
        # itself consumes.
        pixels = torch.Generator(device).manual_seed(
            int(torch.randint(2**62, ())) if seed is None else as_seed(seed)
        )
        for batch in _split((*arguments, *beside), batch_size):
            moved = [*each(lambda part: part.to(device), batch)]
            if binarize:
                moved[0] = binarized(moved[0], pixels)
            if check and program is not None and not results:
                whole = None if binarize else each(lambda part: part.to(device), arguments)
                check_inputs(
                    program,
                    like,
                    moved[: len(arguments)],
                    whole,
                    pair=None if program is like else "whole",
                )
            programs = [half for half in (program, like) if half is not None]
            with explaining(programs, moved):
                results.append(function(*moved))

    def joined(parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {name: joined([part[name] for part in parts]) for name in parts[0]}
        result = torch.cat([part.to(origin) for part in parts])
        return result.numpy() if _is_array(x) else result

    return joined(results)


def seeded(seed: int | None) -> Any:
    """Makes the draws inside those of the seed, if there is one, and leaves the random state
    as it was.
    """
    return contextlib.nullcontext() if seed is None else preserved_rng(seed)


def codes_of(z: Any, *programs: Program) -> Tensor:
    """Returns values of a latent variable as a tensor with a row for each.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If there are no rows.
    """
    codes = as_float(as_numbers("z", z), *programs)
    codes = codes if codes.is_floating_point() else codes.to(torch.get_default_dtype())
    if not codes.dim() or not len(codes):
        raise ValueError(f"z must have a row for each code, got shape {tuple(codes.shape)}.")
    return codes


def _split(arguments: tuple[Any, ...], size: int) -> Iterator[tuple[Any, ...]]:
    count = -(-count_rows(arguments) // size)
    return zip(
        *([None] * count if part is None else part.split(size) for part in arguments),
        strict=True,
    )


def _is_array(x: Any) -> bool:
    if isinstance(x, dict):
        x = tuple(x.values())
    return any(
        isinstance(part, np.ndarray) for part in (x if isinstance(x, (tuple, list)) else [x])
    )

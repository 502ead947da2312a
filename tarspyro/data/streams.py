"""Streams: batches that arrive one after the other, and may never end."""

__all__ = ["Stream"]

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from tarspyro.arguments import as_count, format_value

Batch = TypeVar("Batch")


@dataclass
class Stream(Generic[Batch]):
    """A stream of batches, divided into epochs of ``steps_per_epoch`` batches.

    ``fit`` sees each batch once. After every epoch it adds a row to the history, evaluates the
    held-out data and writes a checkpoint. The training ends with the stream, or after the
    given number of epochs. A resumed run goes on with whatever batch comes next.

    The batches may have any sizes, single rows too. If the number N of all data points is
    known, the model's plate should say so, ``pyro.plate("data", N, subsample=x)``, so that
    every batch estimates the bound of all N.

    Arguments:
        batches: An iterator over the batches, such as a generator or ``iter(loader)``.
        steps_per_epoch: How many batches make an epoch.

    Raises:
        TypeError: If ``batches`` is not an iterator.
        ValueError: If ``steps_per_epoch`` is less than 1.

    Example:
        >>> import torch
        >>> stream = Stream((torch.randn(50, 2) for _ in range(30)), steps_per_epoch=10)
        >>> len(stream), len(list(stream)), len(list(stream))
        (10, 10, 10)
    """

    batches: Iterator[Batch]
    steps_per_epoch: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.batches, Iterator):
            raise TypeError(
                "batches must be an iterator, such as a generator or iter(loader), got"
                f" {format_value(self.batches)}: data that can be read again needs no Stream."
            )
        self.steps_per_epoch = as_count("steps_per_epoch", self.steps_per_epoch)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(self.batches, self.steps_per_epoch)

    def peek(self) -> list[Batch]:
        """Returns the next batch in a list, or an empty list if the stream has ended.

        The batch stays in the stream.
        """
        following = list(itertools.islice(self.batches, 1))
        self.batches = itertools.chain(following, self.batches)
        return following

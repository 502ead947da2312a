"""Lines and progress bars on a screen that may be gone: a closed terminal, or a closed pipe."""

__all__ = ["progress_bar", "say"]

import contextlib
import sys
import threading

from tqdm.auto import tqdm
from tqdm.utils import ObjectWrapper


class _Screen(ObjectWrapper):  # type: ignore[misc]  # tqdm has no types
    """A stream whose errors are ignored, since they must not end a training."""

    def write(self, text: str) -> None:
        """Writes a text, if it can."""
        with contextlib.suppress(OSError, ValueError):
            self._wrapped.write(text)

    def flush(self) -> None:
        """Flushes the stream, if it can."""
        with contextlib.suppress(OSError, ValueError):
            self._wrapped.flush()

    def __eq__(self, other: object) -> bool:
        # The bar gives way to lines on the same stream.
        return bool(self._wrapped == getattr(other, "_wrapped", other))

    def __hash__(self) -> int:
        return hash(self._wrapped)


class _Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A progress bar whose lock belongs to this process alone.

    The lock of tqdm is shared with forked processes: one that is killed while it holds the lock
    would let all others wait without an end. The monitor is a thread with the same lock, and
    steps that become slow are drawn without it, since each of them looks at the clock.
    """

    _lock = threading.RLock()
    monitor_interval = 0


def say(line: str) -> None:
    """Prints a line above the progress bars."""
    with contextlib.suppress(OSError, ValueError):
        _Bar.write(line)


def progress_bar(*, total: int | None, initial: int, disable: bool) -> "tqdm[None]":
    """Returns a progress bar of steps."""
    return _Bar(
        total=total,
        initial=initial,
        disable=disable,
        miniters=1,
        unit="step",
        leave=True,
        file=None if sys.stderr is None else _Screen(sys.stderr),
    )

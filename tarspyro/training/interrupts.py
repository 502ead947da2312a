"""Ctrl-C, SIGTERM and SIGHUP during a training, which then stops between two steps."""

__all__ = ["Interrupts", "sheltered"]

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TypeAlias

from torch.utils.data import DataLoader

_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class Interrupts:
    """A context that notes Ctrl-C, SIGTERM and SIGHUP, so that no step stops in the middle.

    A job scheduler sends SIGTERM, a terminal that is closed SIGHUP. A second signal ends the
    process at once. A signal that the process ignores, as after ``nohup``, is still ignored.
    Python lets only the main thread handle signals; in other threads this context does
    nothing.

    Attributes:
        received: The signal that came; None if none did.

    Example:
        >>> with Interrupts() as interrupts:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     print(interrupts.received.name)
        SIGTERM
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, _Handler] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in _signals():
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def stop(self) -> None:
        """Ends the process as the signal would have.

        Its status is then 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP. A process
        that has received none stops with the others as after SIGTERM.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            SystemExit: After the others.
        """
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.received or signal.SIGTERM))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self._restore()
            signal.raise_signal(number)
        self.received = signal.Signals(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()


def _signals() -> list[signal.Signals]:
    """The signals that ask a training to stop, as far as the system has them."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


class _Worker:
    """Leaves the first signal to the main process; a loader calls it in each worker.

    A terminal and a scheduler send a signal to all processes of a group. A worker that died of
    it would take the training with it before there is a checkpoint.
    """

    def __init__(self, first: Callable[[int], None] | None) -> None:
        self.first = first

    def __call__(self, number: int) -> None:
        for one in _signals():
            if signal.getsignal(one) is not signal.SIG_IGN:
                signal.signal(one, _pass_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _signals())
        if self.first is not None:
            self.first(number)


def _pass_once(number: int, frame: FrameType | None) -> None:
    """Ignores a signal; the second one, such as the loader's own, ends the worker."""
    signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def sheltered(source: object) -> Iterator[None]:
    """Shelters the workers that a loader starts inside from a signal to the whole group."""
    if (
        not isinstance(source, DataLoader)
        or not source.num_workers
        or not hasattr(signal, "pthread_sigmask")
    ):
        yield
        return
    first = source.worker_init_fn
    source.worker_init_fn = _Worker(first)
    # Until a worker can handle signals it is born with them blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _signals())
    try:
        yield
    finally:
        source.worker_init_fn = first
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

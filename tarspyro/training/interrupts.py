"""Ctrl-C and SIGTERM during a training, which then stops between two steps."""

__all__ = ["Interrupts"]

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class Interrupts:
    """A context that notes Ctrl-C and SIGTERM, so that no step stops in the middle.

    A job scheduler sends SIGTERM. A second signal ends the process at once. A signal that the
    process ignores, as Ctrl-C after ``nohup``, is still ignored. Python lets only the main
    thread handle signals; in other threads this context does nothing.

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
            for number in (signal.SIGINT, signal.SIGTERM):
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

        Its status is then 130 after Ctrl-C and 143 after SIGTERM.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            SystemExit: After SIGTERM.
        """
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self._restore()
            signal.raise_signal(number)
        self.received = signal.Signals(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

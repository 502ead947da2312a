"""What watches a training: functions for ``fit(callback=...)``."""

__all__ = ["TensorBoard"]

from collections.abc import Mapping
from pathlib import Path


class TensorBoard:
    """Writes the rows of a training where TensorBoard finds them: ``fit(...,
    callback=TensorBoard("runs/vae"))``.

    Every number of the history is a curve of the same name over the epochs; look at them with
    ``tensorboard --logdir runs``. A resumed run goes on with its curves.

    Arguments:
        folder: Where the event files go; several runs in folders side by side are drawn over
            each other.

    Raises:
        ModuleNotFoundError: If TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:  # here, and not above: it takes a second, and is an extra
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"TensorBoard({str(folder)!r}) needs a package that is missing ({error.name}):"
                " pip install tarspyro[tensorboard].",
                name=error.name,
            ) from error
        self.folder = Path(folder)
        self._writer = SummaryWriter(str(folder))

    def __call__(self, row: Mapping[str, float]) -> None:
        """Writes one epoch, whose number is ``row["epoch"]``."""
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

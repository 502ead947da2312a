"""Callbacks: functions that ``fit`` calls after every epoch, ``fit(callback=...)``."""

__all__ = ["TensorBoard"]

from collections.abc import Mapping
from pathlib import Path


class TensorBoard:
    """A callback that writes the history for TensorBoard, ``callback=TensorBoard("runs/vae")``.

    Every number of the history becomes a curve of the same name over the epochs. To look at
    them, run ``tensorboard --logdir runs``. A resumed run continues its curves.

    Arguments:
        folder: The folder of the event files. TensorBoard draws the runs of folders side by
            side in one picture.

    Raises:
        ModuleNotFoundError: If TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:  # the import takes a second, and the package is optional
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

"""Polyphonic music as piano rolls."""

__all__ = ["polyphonic_music"]

from pathlib import Path

import numpy as np

from tarspyro.data.files import DataError, data_folder, fetch, read
from tarspyro.data.matlab import read_matlab
from tarspyro.data.sequences import SequenceDataset, Sequences

# The file of each data set and its SHA-256. The files have no stable address.
_FILES = {
    "jsb_chorales": (
        "JSB_Chorales.mat",
        "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4",
    ),
    "nottingham": (
        "Nottingham.mat",
        "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea",
    ),
}
_PARTS = ("traindata", "validdata", "testdata")


def polyphonic_music(name: str | Path, *, folder: str | Path | None = None) -> SequenceDataset:
    """Returns polyphonic music as piano rolls: at each step 88 notes, from A0 to C8, that
    sound (1) or not (0).

    - ``"jsb_chorales"``: 382 chorales by Bach, 229 / 76 / 77 for training, validation and
      testing.
    - ``"nottingham"``: 1,037 folk tunes, 694 / 173 / 170.

    The split is that of Boulanger-Lewandowski et al. (2012), arXiv:1206.6392. Results are
    usually given in nats per step: ``log_likelihood(...).sum() / data.test.steps``.

    Arguments:
        name: The name of the data set; or the path of any MATLAB file of the same form, with
            cell arrays ``traindata``, ``validdata`` and ``testdata`` of matrices with a row
            for each step.
        folder: The data folder, see ``mnist``. The file ``polyphonic_music/JSB_Chorales.mat``
            or ``polyphonic_music/Nottingham.mat`` has to be put there.

    Raises:
        DataError: If the file is missing, has the wrong content, or is not of the form.
        ValueError: If there is no such data set.
    """
    if str(name) in _FILES:
        file, sha256 = _FILES[str(name)]
        path = data_folder(folder) / "polyphonic_music" / file
        return _piano_rolls(str(name), path, fetch(path, None, sha256, bytes))
    path = Path(str(name)).expanduser()
    if path.suffix != ".mat":
        raise ValueError(
            f"name must be one of {', '.join(_FILES)}, or the path of a .mat file, got"
            f" {str(name)!r}."
        )
    return _piano_rolls(path.stem, path, read(path))


def _piano_rolls(name: str, path: Path, content: bytes) -> SequenceDataset:
    try:
        arrays = read_matlab(content, _PARTS)
        train, validation, test = (
            Sequences.padded(map(_as_roll, arrays[part])) for part in _PARTS
        )
        if not train.x.shape[2:] == validation.x.shape[2:] == test.x.shape[2:]:
            raise ValueError("the parts differ in their number of notes")
    except Exception as error:  # the decoder raises many kinds of errors on damaged files
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} does not hold cell arrays {', '.join(_PARTS)} of piano rolls ({reason})."
        ) from error
    return SequenceDataset(name, train, validation, test)


def _as_roll(piece: np.ndarray) -> np.ndarray:
    """Returns one piece as bytes, of shape (T, notes)."""
    if piece.ndim != 2 or not np.isin(piece, (0, 1)).all():
        raise ValueError("a piece is not a matrix of zeros and ones")
    return piece.astype(np.uint8)

"""MATLAB files, read in a process of their own: on some that are damaged the decoder does not
fail, but crashes.
"""

__all__ = ["read_matlab"]

import io
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

_SECONDS = 120
# What it finds goes back as an archive of arrays, plain numbers and nothing else; the elements
# of a cell are numbered.
_READER = """
import io, sys
import numpy as np
from scipy.io import loadmat
found, arrays = loadmat(io.BytesIO(sys.stdin.buffer.read())), {}
for name in sys.argv[1:]:
    value = np.asarray(found[name])
    pieces = [np.asarray(piece) for piece in (value.ravel() if value.dtype == object else [value])]
    if any(piece.dtype.hasobject for piece in pieces):
        raise ValueError(f"{name} holds something other than arrays of numbers")
    arrays.update({f"{name}.{index}": piece for index, piece in enumerate(pieces)})
buffer = io.BytesIO()
np.savez(buffer, **arrays)
sys.stdout.buffer.write(buffer.getvalue())
"""


def read_matlab(content: bytes, names: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Returns the variables of these names in a MATLAB file: the elements of a cell array, or
    one array.

    Raises:
        ValueError: If it is no such file, or lacks one of them.
    """
    # Away from the caller's folder, of which a process that is started like this would import.
    command = [sys.executable, "-c", _READER, *names]
    done = subprocess.run(
        command, input=content, capture_output=True, cwd=sys.prefix, timeout=_SECONDS
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(
            said[-1]
            if done.returncode > 0 and said
            else "the decoder of MATLAB files crashed on it"
        )
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as archive:
        for key in archive.files:
            found[key.rpartition(".")[0]].append(archive[key])
    return found

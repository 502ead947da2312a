"""MATLAB files, read in a process of their own, because SciPy's decoder crashes on some that
are damaged.
"""

__all__ = ["read_matlab"]

import io
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

_SECONDS = 120
# The process answers with an archive of plain arrays, in which the elements of a cell array
# are numbered.
_READER = """
import io, sys
import numpy as np
from scipy.io import loadmat
found = loadmat(io.BytesIO(sys.stdin.buffer.read()))
arrays = {}
for name in sys.argv[1:]:
    value = np.asarray(found[name])
    elements = value.ravel() if value.dtype == object else [value]
    for index, element in enumerate(map(np.asarray, elements)):
        if element.dtype.hasobject:
            raise ValueError(f"{name} holds something other than arrays of numbers")
        arrays[f"{name}.{index}"] = element
buffer = io.BytesIO()
np.savez(buffer, **arrays)
sys.stdout.buffer.write(buffer.getvalue())
"""


def read_matlab(content: bytes, names: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Returns variables of a MATLAB file by name: the elements of a cell array, or one array.

    Raises:
        ValueError: If the content is not a MATLAB file, or lacks a variable.
    """
    # A process that is started in the caller's folder would import modules from there.
    done = subprocess.run(
        [sys.executable, "-c", _READER, *names],
        input=content,
        capture_output=True,
        cwd=sys.prefix,
        timeout=_SECONDS,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        crashed = done.returncode < 0 or not lines
        raise ValueError("the decoder of MATLAB files crashed on it" if crashed else lines[-1])
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as archive:
        for key in archive.files:
            found[key.rpartition(".")[0]].append(archive[key])
    return found

"""MATLAB files, read in a process of their own, because SciPy's decoder crashes on some that
are damaged.
"""

__all__ = ["read_matlab"]

import io
import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

_SECONDS = 60
_MOST_NUMBERS = 1 << 29  # bytes of all requested variables
_MOST_MEMORY = 3 << 28  # bytes of the process that reads
# The process answers with an archive of plain arrays, in which the elements of a cell array
# are numbered.
_READER = """
import io, sys
import numpy as np
from scipy.io import loadmat
names = sys.argv[4:]
try:
    import resource
    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
except (ImportError, ValueError, OSError):  # not on every system
    pass
content = io.BytesIO(sys.stdin.buffer.read())
try:
    found = loadmat(content, variable_names=names)
except MemoryError:
    sys.exit("its arrays need too much memory")
missing = [name for name in names if name not in found]
if missing and sys.argv[3] == "all":
    sys.exit(repr(missing[0]))
names = [name for name in names if name in found]
arrays = {}
size = 0
for name in names:
    value = np.asarray(found[name])
    elements = value.ravel() if value.dtype == object else [value]
    for index, element in enumerate(map(np.asarray, elements)):
        if element.dtype.hasobject and sys.argv[3] == "some":
            continue
        if element.dtype.hasobject:
            raise ValueError(f"{name} holds something other than arrays of numbers")
        size += element.nbytes
        if size > int(sys.argv[2]):
            sys.exit("its arrays need too much memory")
        arrays[f"{name}.{index}"] = element
buffer = io.BytesIO()
np.savez(buffer, **arrays)
sys.stdout.buffer.write(buffer.getvalue())
"""


def read_matlab(
    content: bytes, names: Sequence[str], *, some: bool = False
) -> dict[str, list[np.ndarray]]:
    """Returns variables of a MATLAB file by name: the elements of a cell array, or one array.

    Arguments:
        content: The bytes of the file.
        names: The names of the variables.
        some: Whether some may be missing.

    Raises:
        ValueError: If the content is not a MATLAB file, or lacks a variable.
    """
    limits = (str(_MOST_MEMORY), str(_MOST_NUMBERS))
    # A process that is started in the caller's folder would import modules from there.
    done = subprocess.run(
        [sys.executable, "-c", _READER, *limits, "some" if some else "all", *names],
        input=content,
        capture_output=True,
        cwd=sys.prefix,
        timeout=_SECONDS,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        crashed = done.returncode < 0 or not lines
        raise ValueError("the decoder of MATLAB files crashed on it" if crashed else lines[-1])
    found: dict[str, list[np.ndarray]] = {}
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as archive:
        for key in archive.files:
            found.setdefault(key.rpartition(".")[0], []).append(archive[key])
    return found

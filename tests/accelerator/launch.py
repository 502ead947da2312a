"""Runs a script on the pretended accelerator: ``python -m tests.accelerator.launch SCRIPT ...``."""

import os
import runpy
import sys
import traceback
from pathlib import Path

from tests.accelerator import pretended


def main() -> None:
    """Runs the script whose path and arguments follow."""
    pretended.install()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # autograd's threads of the device abort an ordinary end


if __name__ == "__main__":
    main()

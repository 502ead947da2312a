"""The command line, as a script: ``python -m tarspyro``."""

__all__ = ["main"]

import sys

from tarspyro.commands import main

if __name__ == "__main__":
    sys.exit(main())

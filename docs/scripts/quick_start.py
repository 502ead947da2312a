"""Runs the first example of a README, as a user would paste it.

python quick_start.py README.md
"""

import sys
from pathlib import Path

text = Path(sys.argv[1]).read_text("utf-8")
code = text.partition("```python\n")[2].partition("```")[0]
exec(compile(code, sys.argv[1], "exec"))

"""A step that waits: run as `python -I -S /abs/gate.py FIFO` it ends once somebody has written into the FIFO.

The keeper puts it before an engine that must wait for its turn; what can be done before (a download) is done before.
Standard library only.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    with Path(sys.argv[1]).open("rb", buffering=0) as gate:
        sys.exit(0 if gate.read(1) else 1)

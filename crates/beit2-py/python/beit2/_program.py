"""The program ``beit2``, as it is called after ``pip install``."""

import signal
import sys
from collections.abc import Sequence

from . import _beit2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program ``beit2`` with ``arguments`` (those of this process by default) and returns its exit code.

    To be called once, in the main thread of a process that does nothing else: the program listens for signals and prints.
    From Python code, run it as a process of its own: ``subprocess.run(["beit2", …])``.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    # Python's own handler would raise KeyboardInterrupt after the program has saved its work.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout.flush()
    return _beit2.main(["beit2", *given])


def _script() -> None:
    sys.exit(main())

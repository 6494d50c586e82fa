"""``python -m beit2`` is the program ``beit2``."""

from ._program import _script

_script()

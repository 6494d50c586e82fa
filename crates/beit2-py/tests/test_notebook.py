"""The notebook that a newcomer opens first runs from top to bottom, and its kept outputs are of this code."""

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="nbclient is not installed; scripts/python_test.txt names it")
pytest.importorskip("ipykernel", reason="ipykernel is not installed; scripts/python_test.txt names it")

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

import nbformat  # noqa: E402

from notebook import LARGEST, NOTEBOOK, executed, texts  # noqa: E402


def test_the_notebook(tmp_path: Path) -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size <= LARGEST
    found = executed(tmp_path)
    # Times and the last digits depend on the machine.
    assert re.sub(r"[0-9.]+", "#", texts(found)) == re.sub(r"[0-9.]+", "#", texts(kept))
    accuracy = re.search(r"accuracy ([0-9.]+)", texts(found))
    assert accuracy and float(accuracy[1]) > 0.3
    images = [
        output
        for notebook in (found, kept)
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(images) == 6
    assert not list(tmp_path.iterdir()), "it writes nothing beside itself"

#!/usr/bin/env python3
"""Runs docs/notebooks/first.ipynb from top to bottom.

    scripts/python_test.sh --setup && target/python-test/bin/python scripts/notebook.py [--save]

Needs the environment of scripts/python_test.sh with the wheel in it. --save keeps the outputs in the file, as GitHub shows them: texts and
images of at most 250 kB in all, without the report. Prints the texts.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "first.ipynb"
LARGEST = 250_000
# The report of a run has all of its images.
LARGEST_PAGE = 20_000


def executed(folder: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; an error in a cell is an exception."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # The kernel of this Python, whatever is installed elsewhere, and with its program.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()
    return notebook


def texts(notebook: nbformat.NotebookNode) -> str:
    """What the cells printed."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(Path(folder))
    print(texts(notebook), end="")
    if not args.save:
        return
    for cell in notebook.cells:
        # When cells ran is different each time.
        cell.metadata.clear()
        for output in cell.get("outputs", []):
            if len(output.get("data", {}).get("text/html", "")) > LARGEST_PAGE:
                output["data"] = {"text/plain": "(the report, which is not kept in this file)"}
    notebook.metadata.language_info = {"name": "python"}
    content = nbformat.writes(notebook)
    if len(content) > LARGEST:
        sys.exit(f"notebook.py: {len(content)} bytes are too much to look at on GitHub; nothing was written")
    NOTEBOOK.write_text(content.rstrip("\n") + "\n")


if __name__ == "__main__":
    main()

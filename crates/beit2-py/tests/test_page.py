"""The code of docs/python.md runs from top to bottom."""

import re
import shutil
from pathlib import Path
from typing import Any

from conftest import World

PAGE = Path(__file__).parents[3] / "docs" / "python.md"


def test_the_page(world: World, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "runs").mkdir()
    for name, run in [("mim", "classifier"), ("classifier", "classifier"), ("tokenizer", "tokenizer"), ("segmenter", "segmenter")]:
        (tmp_path / "runs" / name).symlink_to(world.root / run)
    for name, image in [("cat.jpg", 0), ("dog.jpg", 1)]:
        shutil.copy(world.images()[image], tmp_path / name)
    for name in ("images", "tokenizer.toml"):
        (tmp_path / name).symlink_to(world.root / name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 6
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {})
    assert "image 1: the content is not a JPEG" in capsys.readouterr().out

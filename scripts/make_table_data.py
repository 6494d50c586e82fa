#!/usr/bin/env python3
"""Makes the parquet files that the tests of `beit2-data` read, with the libraries that people make theirs with.

    pip install datasets==5.2.0 pyarrow==26.0.1 pillow==13.0.0
    python3 scripts/make_table_data.py crates/beit2-data/tests/data/parquet

Image i is 8 x 8 pixels of the colour (i, 2 i, 3 i).
"""

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pillow


def png(number: int) -> bytes:
    out = io.BytesIO()
    Pillow.new("RGB", (8, 8), (number, 2 * number, 3 * number)).save(out, "PNG")
    return out.getvalue()


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    names = ["dog", "cat", "ape"]

    # As `datasets` writes it: a group of bytes and path, class names in the metadata, -1 for a hidden label.
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(12)]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    labels = [i % 3 for i in range(11)] + [-1]
    dataset = Dataset.from_dict({"image": images, "label": labels}, features=features)
    dataset.to_parquet(str(out / "train-00000-of-00002.parquet"), batch_size=5)
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(12, 17)]
    dataset = Dataset.from_dict({"image": images, "label": [2] * 5}, features=features)
    dataset.to_parquet(str(out / "train-00001-of-00002.parquet"), batch_size=5)

    # Several classes for an image.
    features = Features({"image": Image(), "labels": List(ClassLabel(names=names)), "text": Value("string")})
    rows = {"image": images[:3], "labels": [[0, 2], [], [1]], "text": ["a", "b", "c"]}
    Dataset.from_dict(rows, features=features).to_parquet(str(out / "several.parquet"))

    # As other tools write it: raw bytes, names as text, another compression, a missing image, two columns of bytes.
    table = pa.table(
        {
            "jpg": pa.array([png(0), None, png(2)], pa.binary()),
            "thumbnail": pa.array([png(9)] * 3, pa.binary()),
            "cls": pa.array(["wolf", "fox", "wolf"]),
        }
    )
    pq.write_table(table, out / "plain.parquet", compression="zstd", row_group_size=2)


if __name__ == "__main__":
    main()

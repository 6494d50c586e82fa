"""Arrow streams and parquet files of the program in other readers; scripts/arrow_test.sh calls it.

python scripts/arrow_test.py BEIT2 FOLDER

FOLDER/cases has a tokenizer (tokenizer.weights.safetensors); the rest of FOLDER is for this script.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq


def images(folder: Path, count: int) -> Path:
    """Two classes of noise."""
    random = np.random.default_rng(0)
    for at in range(count):
        path = folder / "images" / ("cat", "dog")[at % 2] / f"{at:02}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P6 40 32 255\n" + random.integers(0, 256, 40 * 32 * 3, dtype=np.uint8).tobytes())
    return folder / "images"


def compare(name: str, command: list[str], column: str, folder: Path) -> None:
    """A command's rows in every reader, against its npy file."""
    npy = folder / f"{name}.npy"
    subprocess.run([*command, "--out", str(npy), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    expected = np.load(npy)
    rows, flat = len(expected), expected.reshape(len(expected), -1)
    done = subprocess.run([*command, "--out", "-"], check=True, capture_output=True)
    assert done.stderr, "messages go to standard error"

    # pyarrow, batch by batch.
    reader = pa.ipc.open_stream(done.stdout)
    assert reader.schema.field(column).type.list_size == flat.shape[1], reader.schema
    assert reader.schema.metadata[b"beit2.row_shape"].decode() == str(list(expected.shape[1:])).replace(" ", "")
    table = reader.read_all()
    values = table[column].combine_chunks().flatten().to_numpy().reshape(rows, -1)
    assert values.dtype == expected.dtype and (values == flat).all()
    assert set(table["label"].to_pylist()) == {"cat", "dog"}
    paths = table["path"].to_pylist()

    # Polars.
    frame = pl.read_ipc_stream(io.BytesIO(done.stdout))
    assert frame.schema[column] == pl.Array(frame.schema[column].inner, flat.shape[1]), frame.schema
    assert (frame[column].to_numpy() == flat).all() and frame["path"].to_list() == paths

    # DuckDB, on the stream as it comes; it has no half precision.
    if expected.dtype != np.float16:
        stream = duckdb.from_arrow(pa.ipc.open_stream(done.stdout))
        sums = stream.query("rows", f"select path, list_sum({column}::double[]) from rows order by path").fetchall()
        ordered = sorted(zip(paths, flat.astype(np.float64).sum(1), strict=True))
        assert [path for path, _ in sums] == [path for path, _ in ordered]
        assert np.allclose([value for _, value in sums], [value for _, value in ordered])

    # Parquet: lists of a fixed size for those who read the Arrow schema, lists for DuckDB.
    parquet = folder / f"{name}.parquet"
    subprocess.run([*command, "--out", str(parquet), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    table = pq.read_table(parquet)
    assert pa.types.is_fixed_size_list(table.schema.field(column).type), table.schema
    assert (table[column].combine_chunks().flatten().to_numpy().reshape(rows, -1) == flat).all()
    frame = pl.read_parquet(parquet)
    assert (np.stack(frame[column].to_list()) == flat).all()
    kind = frame.schema[column]
    counted = duckdb.sql(f"select count(*), min(len({column})), max(len({column})) from '{parquet}'").fetchone()
    assert counted == (rows, flat.shape[1], flat.shape[1]), counted
    print(f"{name}: {rows} rows are the same in pyarrow, Polars ({type(kind).__name__} from parquet) and DuckDB")


def main() -> None:
    beit2, folder = sys.argv[1], Path(sys.argv[2])
    source = images(folder, 24)
    weights = folder / "cases" / "tokenizer.weights.safetensors"
    embed = [beit2, "embed", str(source), "--weights", str(weights), "--batch-size", "10"]
    compare("features", embed, "features", folder)
    compare("half", [*embed, "--dtype", "f16"], "features", folder)
    compare("patches", [*embed, "--features", "patches"], "features", folder)
    compare("ids", [beit2, "tokenizer", "encode", str(source), "--tokenizer", str(weights)], "ids", folder)

    # A stream that fails is an error for its reader too, not a shorter stream.
    (source / "dog" / "15.ppm").write_bytes(b"P6 40 32 255\nshort")
    done = subprocess.run([*embed, "--out", "-", "--quiet"], check=False, capture_output=True)
    assert done.returncode == 1 and b"15.ppm" in done.stderr
    for name, read in {
        "pyarrow": lambda: pa.ipc.open_stream(done.stdout).read_all(),
        "Polars": lambda: pl.read_ipc_stream(io.BytesIO(done.stdout)),
    }.items():
        try:
            read()
        except Exception as error:  # each reader has its own
            print(f"a stream that ends early, {name}: {type(error).__name__}")
        else:
            raise AssertionError(f"{name} takes a stream that ends early for a whole one")

    # A reader that has enough.
    line = f"set -o pipefail; '{beit2}' embed '{source}' --weights '{weights}' --batch-size 1 --skip-unreadable --quiet --out - | head -c 100"
    done = subprocess.run(["bash", "-c", line], check=False, capture_output=True)
    assert (done.returncode, len(done.stdout)) == (0, 100), done
    print("a closed pipe ends the stream quietly")


if __name__ == "__main__":
    main()

"""Engines that run models on many machines give the program's values: Ray Data with two actors, of which one is killed, and Dask.

    scripts/python_test.sh --engines    # installs them into target/python-engines and runs this

Starts a local Ray and a local Dask. Prints a line for each comparison, and fails if one is not good.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import beit2

RECIPE = """stage = "finetune"
[model.vit]
image_size = 32
patch_size = 8
width = 16
depth = 2
heads = 2
[schedule]
steps = 2
warmup_steps = 0
batch_size = 2
"""
IMAGES = 120

failed = False


def report(what: str, good: bool, told: str) -> None:
    global failed
    failed |= not good
    print(f"{what}: {told}: {'good' if good else 'NOT GOOD'}", flush=True)


def program(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "beit2", *arguments, "--quiet"], check=True, stdout=subprocess.DEVNULL)


def world(folder: Path) -> dict[str, np.ndarray]:
    """Images, a model, and what the program gives for each path."""
    rng = np.random.default_rng(0)
    for at in range(IMAGES):
        place = folder / "images" / f"class{at % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + at % 7, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{at:03}.jpg")
    (folder / "recipe.toml").write_text(RECIPE)
    images, model = str(folder / "images"), str(folder / "model")
    program("finetune", str(folder / "recipe.toml"), "--init", "scratch", "--data", images, "--val", images, "--out", model)
    program("embed", images, "--weights", model, "--out", str(folder / "whole.npy"))
    lines = (folder / "whole.npy.paths.jsonl").read_text().splitlines()
    rows = np.load(folder / "whole.npy")
    return {json.loads(line)["path"]: row for line, row in zip(lines, rows)}


def compare(what: str, expected: dict[str, np.ndarray], paths: list[str], features: Any) -> None:
    """To the bit, and every image once."""
    same = sum(np.array_equal(expected[path], row) for path, row in zip(paths, features))
    good = sorted(paths) == sorted(expected) and same == len(expected)
    report(what, good, f"{len(paths)} rows, {same} of {len(expected)} equal to the program's to the bit")


def ray_data(folder: Path, expected: dict[str, np.ndarray]) -> None:
    import ray

    # Workers of Ray give way to all other work, which on a busy machine takes minutes.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    class Slow(beit2.Embedder):
        """Leaves time to kill an actor, of which each writes its process down."""

        def __init__(self, path: str, processes: str) -> None:
            super().__init__(path)
            self.processes = processes

        def __call__(self, batch: Any, **more: Any) -> Any:  # type: ignore[override]
            if isinstance(batch, dict):
                (Path(self.processes) / str(os.getpid())).touch()
                time.sleep(0.3)
            return super().__call__(batch, **more)

    def embedded(model: type, kwargs: dict[str, Any]) -> Any:
        images = ray.data.read_binary_files(str(folder / "images"), include_paths=True)
        return images.map_batches(
            model, fn_constructor_kwargs={"path": str(folder / "model")} | kwargs, batch_size=8, compute=ray.data.ActorPoolStrategy(size=2)
        )

    def rows(data: Any) -> tuple[list[str], list[Any]]:
        found = data.take_all()
        return [row["path"] for row in found], [row["features"] for row in found]

    compare("Ray Data, two actors", expected, *rows(embedded(beit2.Embedder, {})))
    processes = folder / "processes"
    processes.mkdir()
    killed: list[int] = []

    def kill() -> None:
        while len(list(processes.iterdir())) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        killed.append(int(next(processes.iterdir()).name))
        os.kill(killed[0], signal.SIGKILL)

    from threading import Thread

    thread = Thread(target=kill, daemon=True)
    thread.start()
    found = rows(embedded(Slow, {"processes": str(processes)}))
    thread.join(timeout=60)
    started = len(list(processes.iterdir()))
    report("Ray Data, an actor is killed", bool(killed) and started > 2, f"{started} processes were actors, {len(killed)} was killed")
    compare("Ray Data, after that", expected, *found)
    ray.shutdown()


def dask(folder: Path, expected: dict[str, np.ndarray]) -> None:
    import pandas as pd
    from dask.dataframe import from_pandas
    from dask.distributed import Client, get_worker

    model = str(folder / "model")

    def embed(part: pd.DataFrame) -> pd.DataFrame:
        worker: Any = get_worker()
        # One model for each worker, opened when it is needed first.
        if not hasattr(worker, "embedder"):
            worker.embedder = beit2.Embedder.open(model)
        return part.assign(features=list(worker.embedder(part["path"])))

    with Client(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None):
        table = from_pandas(pd.DataFrame({"path": sorted(expected)}), npartitions=6)
        meta = {"path": "object", "features": "object"}
        found = table.map_partitions(embed, meta=meta).compute()
    compare("Dask, two workers", expected, list(found["path"]), list(found["features"]))


def spark(folder: Path, expected: dict[str, np.ndarray]) -> None:
    import pyarrow as pa
    from pyspark.sql import SparkSession

    model = str(folder / "model")

    def embed(batches: Any) -> Any:
        embedder = beit2.Embedder.open(model)
        for batch in batches:
            rows = embedder(batch.column("path").to_pylist())
            features = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]).cast(pa.list_(pa.float32()))
            yield pa.RecordBatch.from_arrays([batch.column("path"), features], names=["path", "features"])

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    table = session.createDataFrame([(path,) for path in sorted(expected)], "path string").repartition(4)
    found = table.mapInArrow(embed, "path string, features array<float>").collect()
    compare("Spark, two workers", expected, [row.path for row in found], [np.float32(row.features) for row in found])
    session.stop()


if __name__ == "__main__":
    engines = {"ray": ray_data, "dask": dask, "spark": spark}
    with tempfile.TemporaryDirectory() as name:
        expected = world(Path(name))
        for engine in sys.argv[1:] or engines:
            engines[engine](Path(name), expected)
    sys.exit(failed)

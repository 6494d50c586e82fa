"""An embedder is a step of scikit-learn's pipelines."""

from typing import Any

import numpy as np
import pytest

import beit2
from conftest import World

pytest.importorskip("sklearn", reason="scikit-learn is not installed; scripts/python_test.txt names it")

from sklearn.base import clone  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402


def labelled(world: World) -> tuple[list[str], list[str]]:
    """Paths and classes of images that even a model of four steps tells apart: by their shade."""
    paths = sorted((world.root / "classes").glob("*/*.png"))
    return [str(path) for path in paths], [path.parent.name for path in paths]


def pipeline(world: World) -> Any:
    embedder = beit2.Embedder.open(world.path("classifier"))
    return make_pipeline(embedder, StandardScaler(), LogisticRegression(max_iter=1000))


def test_a_pipeline(world: World) -> None:
    paths, classes = labelled(world)
    pipe = pipeline(world).fit(paths, classes)
    assert pipe.score(paths, classes) == 1.0
    features = pipe[:1].transform(paths)
    np.testing.assert_array_equal(features, beit2.Embedder.open(world.path("classifier"))(paths))
    assert "Embedder" in repr(pipe)
    assert "Embedder" in pipe._repr_html_()


@pytest.mark.parametrize("jobs", [1, 2])
def test_cross_validation(world: World, jobs: int) -> None:
    paths, classes = labelled(world)
    scores = cross_val_score(pipeline(world), paths, classes, cv=2, n_jobs=jobs, error_score="raise")
    assert scores.shape == (2,)
    assert scores.min() >= 0.8


def test_clones_and_parameters(world: World) -> None:
    embedder = beit2.Embedder.open(world.path("classifier"))
    copy = clone(embedder)
    assert copy is not embedder
    assert copy.get_params() == embedder.get_params()
    assert (copy.get_params()["path"], copy.get_params()["layer"]) == (world.path("classifier"), None)
    copy.set_params(layer=1)
    assert (copy.layer, embedder.layer) == (1, None)
    image = world.images()[0]
    assert not np.array_equal(copy(image), embedder(image))
    with pytest.raises(beit2.InputError, match="no parameter 'layers'"):
        embedder.set_params(layers=1)
    with pytest.raises(beit2.Error, match="layer"):
        copy.set_params(layer=99)
    assert copy.layer == 1


def test_a_search_over_layers(world: World) -> None:
    paths, classes = labelled(world)
    search = GridSearchCV(pipeline(world), {"embedder__layer": [0, 1, 2]}, cv=2, error_score="raise")
    search.fit(paths, classes)
    assert search.best_params_["embedder__layer"] in (0, 1, 2)
    assert search.predict(paths[:1])[0] in classes

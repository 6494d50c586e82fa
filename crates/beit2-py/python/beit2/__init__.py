"""BEiT v2 from Python: embed, classify, tokenize and segment images.

    >>> import beit2
    >>> embedder = beit2.Embedder.open("runs/mim")
    >>> embedder(["cat.jpg", "dog.jpg"]).shape
    (2, 768)

Models open the same files as the program ``beit2``, see images the same way and give the same values to the bit. What can go
wrong is a :class:`beit2.Error` with the program's sentence.
"""

from ._beit2 import __version__
from ._errors import Error, ImageWarning, InputError, WeightsWarning
from ._inputs import Image, Images
from ._model import decode
from ._program import main
from .classifier import Classifier, Prediction
from .embedder import Embedder
from .runs import Record, Report, Run, Training, train
from .segmenter import Segmenter
from .tokenizer import Tokenizer
from .training_images import TrainingImages

__all__ = [
    "Classifier",
    "Embedder",
    "Error",
    "Image",
    "ImageWarning",
    "Images",
    "InputError",
    "Prediction",
    "Record",
    "Report",
    "Run",
    "Segmenter",
    "Tokenizer",
    "Training",
    "TrainingImages",
    "WeightsWarning",
    "__version__",
    "decode",
    "main",
    "train",
]

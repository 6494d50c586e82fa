"""What can go wrong."""


class Error(Exception):
    """Something failed: a file, the data, a device. The text is the sentence that the program ``beit2`` says."""


class InputError(Error, ValueError):
    """Other arguments are needed: an argument or an image cannot be right. The program's exit code would be 2."""


class WeightsWarning(UserWarning):
    """Something about a weight file is doubtful."""


class ImageWarning(UserWarning):
    """An image of a training cannot be used."""


for _class in (Error, ImageWarning, InputError, WeightsWarning):
    _class.__module__ = "beit2"

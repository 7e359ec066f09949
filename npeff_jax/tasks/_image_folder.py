"""Images in folders, one folder a class."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from npeff_jax.models import ImageProcessor
from npeff_jax.tasks._dataset import Dataset

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm")


def read_image_folder(
    folder: str | pathlib.Path,
    processor: ImageProcessor,
    *,
    label_names: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int | None = None,
    thumbnail: int = 96,
) -> Dataset:
    """An image data set: ``folder/<class>/<image>``.

    Args:
        folder: of folders, one a class.
        processor: of the model, from `models.huggingface_processor`.
        label_names: the folders' names in the order of the labels; sorted by default, the order of ImageNet's.
        limit: at most so many images.
        seed: which ones, drawn over all classes; without it the first in sorted order, class by class.
        thumbnail: longest side of the copies kept as ``display``, in pixels.

    Raises:
        FileNotFoundError: there is no such folder, or none of ``label_names`` in it.
        ValueError: no images, or one that cannot be read, which is named.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    names = tuple(label_names or sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    absent = [name for name in names if not (folder / name).is_dir()]
    if absent:
        raise FileNotFoundError(f"{folder} has no folder {absent[0]!r}, the class {names.index(absent[0])}")
    files = [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in _ENDINGS
    ]
    if not files:
        raise ValueError(f"{folder} has no images; expected folder/<class>/<image>, ending in {', '.join(_ENDINGS)}")
    if limit is not None and limit < len(files):
        order = range(limit) if seed is None else np.random.default_rng(seed).permutation(len(files))[:limit]
        files = [files[i] for i in order]
    pixels, display = [], []
    for file, _ in files:  # one at a time: decoded originals of a whole data set would not fit
        image = _open(file)
        pixels.append(processor([image])["pixel_values"][0])
        small = image.copy()
        small.thumbnail((thumbnail, thumbnail))
        display.append(np.asarray(small))
    labels = np.array([label for _, label in files], np.int32)
    return Dataset({"pixel_values": np.stack(pixels)}, labels, display, names)


def _open(file: pathlib.Path) -> Any:
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error})") from error

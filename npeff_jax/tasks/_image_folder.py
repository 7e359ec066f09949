"""Images in folders, one folder a class."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from npeff_jax.models import ImageProcessor
from npeff_jax.tasks._dataset import Dataset

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm")


class ImageFiles:
    """Images as a model takes them, decoded when they are sliced: ImageNet's 50,000 would take 30 GB."""

    def __init__(self, files: Sequence[pathlib.Path], processor: ImageProcessor) -> None:
        self._files, self._processor = np.array(files, object), processor

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: Any) -> dict[str, np.ndarray]:
        """``pixel_values`` (rows, height, width, channels) of a slice or an integer array."""
        return self._processor([_open(file) for file in self._files[rows]])


def read_image_folder(
    folder: str | pathlib.Path,
    processor: ImageProcessor,
    *,
    label_names: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int | None = None,
    thumbnail: int = 96,
) -> Dataset:
    """An image data set: ``folder/<class>/<image>``. Each image is read once to see that it can be; its pixels are not
    kept, but read again when they are needed.

    Args:
        folder: of folders, one a class.
        processor: of the model, from `models.huggingface_processor`.
        label_names: the folders' names in the order of the labels; sorted by default, the order of ImageNet's.
        limit: at most so many images.
        seed: which ones, drawn over all classes; without it the first in sorted order, class by class.
        thumbnail: side of the square copies kept as ``display``, in pixels.

    Raises:
        FileNotFoundError: there is no such folder, or none of ``label_names`` in it.
        ValueError: no images, or one that cannot be read, which is named.
    """
    import PIL.ImageOps

    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    names = tuple(label_names or sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    absent = [name for name in names if not (folder / name).is_dir()]
    if absent:
        raise FileNotFoundError(f"{folder} has no folder {absent[0]!r}, the class {names.index(absent[0])}")
    found = [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in _ENDINGS
    ]
    if not found:
        raise ValueError(f"{folder} has no images; expected folder/<class>/<image>, ending in {', '.join(_ENDINGS)}")
    if limit is not None and limit < len(found):
        order = range(limit) if seed is None else np.random.default_rng(seed).permutation(len(found))[:limit]
        found = [found[i] for i in order]
    files, labels = zip(*found, strict=True)
    display = [np.asarray(PIL.ImageOps.pad(_open(file), (thumbnail, thumbnail), color="white")) for file in files]
    return Dataset(ImageFiles(files, processor), np.array(labels, np.int32), np.stack(display), names)


def _open(file: pathlib.Path) -> Any:
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error})") from error

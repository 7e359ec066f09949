"""Image data sets in folders, one folder per class."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from npeff_jax._checks import check_callable, check_integer, listing
from npeff_jax._extras import needs
from npeff_jax._progress import Progress, check_progress, progress_bar
from npeff_jax.store import absolute_path
from npeff_jax.tasks._dataset import Dataset
from npeff_jax.tasks._labels import Processor, match_names

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff")

# What systems and tools leave in folders, beside everything that begins with a dot (also "._cat.png" of a Mac).
_LEFT_BY_SYSTEMS = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}

_KEPT_BYTES = 2**30
"""Bytes of encoded images kept in memory, so that an image is not decoded again in each pass over the examples."""


class ImageFiles:
    """Image files as a sized source of examples, decoded when sliced, because 50,000 images of ImageNet take 30 GB.

    Up to 1 GB of decoded images is kept in memory.
    """

    def __init__(self, files: Sequence[pathlib.Path], processor: Processor) -> None:
        self._files, self._processor = np.array(files, object), processor
        self._kept: dict[int, dict[str, np.ndarray]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: Any) -> dict[str, np.ndarray]:
        """Return ``pixel_values`` (rows, height, width, channels) of the images in a slice or integer array."""
        wanted = np.arange(len(self._files))[rows]
        absent = [int(i) for i in wanted if int(i) not in self._kept]
        if not absent:
            return self._stack([self._kept[int(i)] for i in wanted])
        made = self._processor([_open(self._files[i]) for i in absent])
        entries = {i: {name: values[k] for name, values in made.items()} for k, i in enumerate(absent)}
        found = [entries[i] if (i := int(j)) in entries else self._kept[i] for j in wanted]
        for i, entry in entries.items():
            size = sum(value.nbytes for value in entry.values())
            if self._bytes + size <= _KEPT_BYTES:
                self._kept[i] = {name: value.copy() for name, value in entry.items()}
                self._bytes += size
        return made if len(absent) == len(wanted) else self._stack(found)

    @staticmethod
    def _stack(entries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.stack([entry[name] for entry in entries]) for name in entries[0]}


def read_image_folder(
    folder: str | pathlib.Path,
    processor: Processor,
    *,
    label_names: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int | None = None,
    thumbnail: int = 96,
    progress: Progress = True,
) -> Dataset:
    """Read an image data set, ``folder/<class>/<image>``. Each image is opened once to see that it can be read.

    Args:
        folder: folder with one folder per class. Hidden entries and system folders (``__MACOSX``) are ignored.
        processor: encoder of the model, from `models.huggingface_processor`. If it has the names of the model's
            classes, the folders' names are matched to them, and labels are class numbers of the model.
        label_names: names of the folders in the order of the labels. By default the names of the model's classes; the
            sorted names if those are not known; or the numbers for folders 0, 1, …, C − 1.
        limit: maximum number of images.
        seed: seed to draw them at random from all classes; by default the first ones in sorted order, class by class.
        thumbnail: side of the square copies kept as ``display``, in pixels.
        progress: True for a bar, False for none, a text stream for JSON lines.

    Raises:
        FileNotFoundError: the folder does not exist, or a folder of ``label_names`` is missing.
        ValueError: no images, a class without images, an image that cannot be read (the message names it), or folder
            names that cannot be matched to the model's classes (the message lists both).
    """
    folder = absolute_path(folder, "folder")  # absolute, because images are read later
    check_callable("processor", processor)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    limit = None if limit is None else check_integer("limit", limit)
    seed = None if seed is None else check_integer("seed", seed, 0)
    thumbnail = check_integer("thumbnail", thumbnail)
    check_progress(progress)
    if isinstance(label_names, str):
        raise TypeError(f"label_names={label_names!r} is one text; pass the names of the folders in a list")
    model_names = getattr(processor, "label_names", None)
    given = label_names is not None
    names = tuple(map(str, label_names or ())) if given else _class_folders(folder, model_names)
    if len(set(names)) < len(names):
        raise ValueError(f"label_names={list(names)} has a name twice; expected one folder per class")
    absent = [name for name in names if not (folder / name).is_dir()]
    if absent:
        raise FileNotFoundError(f"{folder} has no folder {absent[0]!r}, the class {names.index(absent[0])}")
    found = [(file, label) for label, name in enumerate(names) for file in _images(folder / name)]
    if not found:
        raise ValueError(f"{folder} has no images; expected folder/<class>/<image>, ending in {_endings()}")
    empty = sorted(set(range(len(names))) - {label for _, label in found})
    if empty and not given:
        raise ValueError(
            f"{folder / names[empty[0]]} has no images, so that it may be no class; remove it, or pass label_names, "
            f"the folders that are classes. Images end in {_endings()}"
        )
    labels = np.array([label for _, label in found], np.int32)
    numbered = not given and names == tuple(map(str, range(len(names))))
    if numbered and model_names is not None:
        names = tuple(map(str, model_names))  # equally many, as checked by _class_folders
    else:
        labels, names = match_names(labels, names, model_names, str(folder), given=given)
    order = np.arange(len(found))
    if limit is not None and limit < len(found):
        order = order[:limit] if seed is None else np.random.default_rng(seed).permutation(len(found))[:limit]
    files = [found[i][0] for i in order]
    display = np.empty((len(files), thumbnail, thumbnail, 3), np.uint8)
    with progress_bar(progress, "images", len(files), "image") as advance:
        for i, file in enumerate(files):
            display[i] = _thumbnail(file, thumbnail)
            advance(1)
    return Dataset(ImageFiles(files, processor), labels[order], display, names)


def is_data(entry: pathlib.Path) -> bool:
    """Return whether a file or folder is data, that is, neither hidden nor created by the operating system."""
    return not entry.name.startswith(".") and entry.name.casefold() not in _LEFT_BY_SYSTEMS


def _class_folders(folder: pathlib.Path, model_names: Sequence[str] | None) -> tuple[str, ...]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and is_data(entry))
    numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
    if len(numbers) < len(names) or not names:
        return tuple(names)
    if model_names is not None and set(names) <= set(map(str, model_names)):
        return tuple(names)  # the model's classes are named by numbers too
    ordered = tuple(sorted(names, key=int))
    if sorted(numbers) != list(range(len(numbers))):
        raise ValueError(
            f"{folder}: the folders {listing(ordered)} are numbers, but not 0 to {len(numbers) - 1}; pass label_names, "
            "the folders' names in the order of the model's classes"
        )
    if model_names is not None and len(model_names) != len(ordered):
        raise ValueError(
            f"{folder} has the folders 0 to {len(ordered) - 1}, the model {len(model_names)} classes "
            f"({listing(list(map(str, model_names)))}); pass label_names, the folders in the order of its classes"
        )
    return ordered


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    files = (file for file in folder.iterdir() if file.suffix.lower() in IMAGE_ENDINGS and is_data(file))
    return sorted(file for file in files if file.is_file())


def _endings() -> str:
    return ", ".join(IMAGE_ENDINGS)


def _thumbnail(file: pathlib.Path, side: int) -> UInt8[np.ndarray, "side side 3"]:
    import PIL.ImageOps

    return np.asarray(PIL.ImageOps.pad(_open(file), (side, side), color="white"))


def _open(file: pathlib.Path) -> Any:
    with needs("an image folder"):
        import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            if image.mode.startswith("I;16"):  # PIL's conversion would clip 16-bit values at 255
                return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError(
                    f"its pixels are of mode {image.mode}, of unknown range; save it with 8 bits a channel"
                )
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error})") from error

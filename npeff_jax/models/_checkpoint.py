"""Reading of weights from safetensors and PyTorch files, whole or sharded, with the standard library and NumPy.

A PyTorch file is a pickle, which can execute arbitrary code. `_TensorUnpickler` allows only the few calls that build
tensors, so that an untrusted checkpoint can be read safely.
"""

import dataclasses
import json
import math
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from npeff_jax._checks import listing
from npeff_jax._extras import needs

Tensors = Mapping[str, np.ndarray]

# In order of preference; a directory with both holds the same weights in both.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_SHARDED = tuple(f"{name}.index.json" for name in _WHOLE)
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth")

_SAFETENSORS_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_STORAGE_TYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first value of files by torch.save before 1.6


def read_checkpoint(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Read all weights of a checkpoint directory by name, memory-mapped if the format allows.

    The files are, in order of preference, ``model.safetensors``, ``pytorch_model.bin``, and the ``.index.json`` of
    either, which lists its shards.

    Raises:
        FileNotFoundError: there is no such file, or a shard is missing.
        ValueError: a file is damaged, or contains pickled code other than weights.
    """
    for name in _WHOLE:
        if (directory / name).is_file():
            return read_weights(directory / name)
    for name in _SHARDED:
        if (directory / name).is_file():
            return _read_sharded(directory / name)
    raise FileNotFoundError(f"{directory} has no weights; expected one of {', '.join(_WHOLE + _SHARDED)}")


def read_weights(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Read the weights of one file by name.

    Raises:
        ValueError: the file is damaged, has another format, or contains more than tensors.
    """
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in _PICKLE_SUFFIXES:
        return _read_pytorch(file)
    raise ValueError(f"{file} is neither safetensors nor a PyTorch file ({', '.join(_PICKLE_SUFFIXES)})")


def _read_sharded(index: pathlib.Path) -> dict[str, np.ndarray]:
    weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(weight_map.values())):
        file = index.parent / shard
        if file.resolve().parent != index.parent.resolve() or not file.is_file():
            raise FileNotFoundError(f"{index} names the shard {shard!r}, which is not beside it")
        for name, tensor in read_weights(file).items():
            if weight_map.get(name, shard) == shard:  # ignore copies in shards that the index does not name
                tensors[name] = tensor
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise ValueError(f"{index} names {listing(absent)}, which no shard holds")
    return tensors


def _read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Memory-map the arrays of a safetensors file: eight bytes of length, a JSON header, then the arrays."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            # Headers are far smaller than 100 MB; in a file of another format these bytes are an arbitrary number.
            header = json.loads(stream.read(length), object_pairs_hook=_each_once) if 0 < length < 100_000_000 else None
    except (UnicodeDecodeError, json.JSONDecodeError):
        header = None
    if not isinstance(header, dict):
        raise ValueError(f"{file} is not a safetensors file, or its beginning is damaged")
    data = np.memmap(file, np.uint8, mode="r")[8 + length :] if file.stat().st_size > 8 + length else np.empty(0, "u1")
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise ValueError(f"{file}: {name} is stored as {entry['dtype']}; expected {', '.join(_SAFETENSORS_TYPES)}")
        dtype, (start, stop) = np.dtype(_SAFETENSORS_TYPES[entry["dtype"]]), entry["data_offsets"]
        if stop > data.size or stop - start != dtype.itemsize * math.prod(entry["shape"]):
            raise ValueError(f"{file} is damaged or cut short: it does not hold all of {name}")
        tensors[name] = data[start:stop].view(dtype).reshape(entry["shape"])
    return tensors


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise json.JSONDecodeError("a name stands twice in the header", "", 0)
    return found


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A PyTorch storage named in the pickle. The position of its elements is known only after unpickling."""

    key: str
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def resolve(self, flat: np.ndarray) -> np.ndarray:
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides))
        if math.prod(self.shape) and not (self.offset >= 0 and last < flat.size and min(self.strides, default=0) >= 0):
            raise ValueError(f"a tensor of shape {self.shape} reaches outside its storage of {flat.size} elements")
        strides = [stride * flat.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)


class _TensorUnpickler(pickle.Unpickler):
    """Unpickler of dictionaries of tensors. It imports no name outside the list of `find_class`."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in _STORAGE_TYPES:
            return np.dtype(_STORAGE_TYPES[name])
        if (module, name) in _REBUILD:
            return _REBUILD[module, name]
        raise ValueError(
            f"the file asks to call {module}.{name}, which is not needed to hold weights, and was not executed; "
            "convert a checkpoint you trust to safetensors, or save its state_dict alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise ValueError(f"unknown persistent object {pid!r} in a PyTorch file")
        return _Storage(str(pid[2]), pid[1])


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...], *_: Any
) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_REBUILD: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}


def _read_pytorch(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        if zipfile.is_zipfile(file):
            return _read_zip(file)
        return _read_legacy(file)
    except (pickle.UnpicklingError, EOFError, zipfile.BadZipFile, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{file} is not a PyTorch file of weights, or is damaged ({error})") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _read_zip(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Read the format since PyTorch 1.6: ``data.pkl``, and one entry per storage in ``data/``."""
    with zipfile.ZipFile(file) as archive:
        root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
        if order != b"little":
            raise ValueError(f"byte order {order!r}; only little-endian files are read")
        with archive.open(f"{root}data.pkl") as stream:
            state = _TensorUnpickler(stream).load()
        flat: dict[str, np.ndarray] = {}

        def elements(storage: _Storage) -> np.ndarray:
            if storage.key not in flat:
                flat[storage.key] = np.frombuffer(archive.read(f"{root}data/{storage.key}"), storage.dtype)
            return flat[storage.key]

        return _resolve(state, elements)


def _read_legacy(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Read the format before PyTorch 1.6: pickles of magic, version, system, weights and keys, then storages."""
    with file.open("rb") as stream:
        if _TensorUnpickler(stream).load() != _LEGACY_MAGIC:
            raise pickle.UnpicklingError("it does not begin as one")
        _version, system = _TensorUnpickler(stream).load(), _TensorUnpickler(stream).load()
        if not system["little_endian"]:
            raise ValueError("written big-endian; only little-endian files are read")
        state, keys = _TensorUnpickler(stream).load(), _TensorUnpickler(stream).load()
        dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in _tensors(state).values()}
        flat = {}
        for key in keys:
            size, dtype = int.from_bytes(stream.read(8), "little"), dtypes[key]
            flat[key] = np.frombuffer(stream.read(size * dtype.itemsize), dtype)
            if flat[key].size != size:
                raise EOFError("the file is cut short")
        return _resolve(state, lambda storage: flat[storage.key])


def _resolve(state: Any, elements: Callable[[_Storage], np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensor.resolve(elements(tensor.storage)) for name, tensor in _tensors(state).items()}


def _tensors(state: Any) -> dict[str, _Tensor]:
    """Return the entries of a state dict that are tensors."""
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}; expected a dictionary of tensors, a state_dict")
    return {name: value for name, value in state.items() if isinstance(value, _Tensor)}


def locate(directory_or_id: str | pathlib.Path, revision: str | None = None) -> pathlib.Path:
    """Return the directory itself, or the cached copy of a model on the hub.

    Raises:
        TypeError: it is neither a path nor a name.
        FileNotFoundError: there is no such directory, and no model of that name could be fetched from the hub.
    """
    if not isinstance(directory_or_id, str | pathlib.Path) or not str(directory_or_id):
        raise TypeError(
            f"directory_or_id={directory_or_id!r} is a {type(directory_or_id).__name__}; pass the directory of a "
            "checkpoint, or its name on the hub"
        )
    directory = pathlib.Path(directory_or_id).expanduser()
    if directory.is_dir():
        return directory
    with needs("a model on the hub"):
        import huggingface_hub

    fetch = partial(huggingface_hub.snapshot_download, str(directory_or_id), revision=revision)
    try:
        found = pathlib.Path(
            fetch(allow_patterns=["*.json", "*.txt", "model*.safetensors", "adapter_model.safetensors"])
        )
        if not any(found.glob("*.safetensors")):
            fetch(allow_patterns=["pytorch_model*.bin"])
        return found
    except Exception as error:
        raise FileNotFoundError(
            f"{directory_or_id} is not a directory, and the Hugging Face hub did not give a model of that name "
            f"({type(error).__name__}: {error}); without a network, pass a directory that save_pretrained wrote"
        ) from error


def read_config(directory: pathlib.Path) -> Any:
    """Read the configuration of a checkpoint, with the defaults of its class.

    Raises:
        FileNotFoundError: there is no ``config.json``.
        ValueError: ``config.json`` cannot be read.
    """
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory} has no config.json; pass a directory that save_pretrained wrote")
    with needs("a Hugging Face checkpoint"):
        import transformers

    try:
        return transformers.AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{directory / 'config.json'} cannot be read as a configuration: {error}") from error

"""The files that hold a PyTorch model's weights: which of them are read, whether they are whole.

Headers and a few bytes are read here, never a whole file, except where two files are compared.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import ModelError
from ...engine.family import architecture, model_family, unscored_task

# Load a Hugging Face directory in PyTorch, and refuse one that lacks weights.

# What transformers calls the last layer of a classifier.
_HEADS = ("classifier", "score", "classification_head", "pre_classifier")


def load_whole(folder: str | Path, kind: Any = None) -> Any:
    """A model in float32, whose every weight comes from the directory."""
    import torch

    model = _loaded(folder, kind, dtype=torch.float32)
    return model.eval()


def check_whole(folder: str | Path) -> None:
    """Raise what `load_whole` would, from names and shapes alone: no number is read."""
    # A shape that differs is an error of transformers' own otherwise, which names no tensor.
    _loaded(folder, None, device_map="meta", ignore_mismatched_sizes=True)


def _loaded(folder: str | Path, kind: Any, **options: Any) -> Any:
    usual, unused = _class_of(Path(folder))
    model, found = (kind or usual).from_pretrained(
        folder, local_files_only=True, output_loading_info=True, **options
    )
    missing = [k for k in found["missing_keys"] if not k.startswith(unused)]
    mismatched = found["mismatched_keys"]  # names, or tuples that begin with one
    other = sorted(entry if isinstance(entry, str) else str(entry[0]) for entry in mismatched)
    unknown = sorted(found["unexpected_keys"])
    surplus = [k for k in unknown if IN_A_LAYER.search(k)]
    if missing or other or surplus:
        wrong = {
            "lack": missing,
            "hold in another shape": other,
            "hold, without a place for them,": surplus,
        }
        parts = (f"{what} {listed(names)}" for what, names in wrong.items() if names)
        raise ModelError(
            f"the weights in {folder} are not those that its config.json describes: they "
            f"{'; they '.join(parts)}. transformers would fill gaps with random "
            f"numbers.{_hint(missing, other, unknown)}"
        )
    return model


def _class_of(folder: Path) -> tuple[Any, tuple[str, ...]]:
    """The class that loads a model, and beginnings of names of weights that nothing reads."""
    import transformers

    if unscored_task(folder):
        return getattr(transformers, architecture(folder)), ()
    family = model_family(folder)
    if family == "decoder":
        return transformers.AutoModelForCausalLM, ()
    if family == "classifier":
        return transformers.AutoModelForSequenceClassification, ()
    # Of a base model the hidden states are read, never what its pooler makes of the first.
    return transformers.AutoModel, ("pooler.",)


def _hint(missing: Iterable[str], other: Iterable[str], unknown: Iterable[str]) -> str:
    """What to do: names may differ by their beginning alone, as after torch.compile."""
    if any(name.split(".")[0] in _HEADS for name in other):
        return (
            " Use the config that was saved with them: the labels of a classifier are counted by "
            "its id2label."
        )
    wanted = set(missing)
    for name in unknown:
        for cut in range(1, len(name)):
            if name[cut:] in wanted and name[cut - 1] == ".":
                return (
                    f" The names begin with {name[:cut]!r}: save the model that was wrapped "
                    "(model._orig_mod after torch.compile, model.module in parallel training)."
                )
    return " Save the whole model again with save_pretrained, and its config beside it."


# In the order in which transformers looks for them.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.(safetensors|bin)$")
IN_A_LAYER = re.compile(r"\.\d+\..*weight$")
"""Weights inside of a numbered layer, by their names."""

_POINTER_BYTES = 1024
_LARGEST_HEADER = 100_000_000  # safetensors' own limit
_ROWS = 4_000_000  # numbers compared at a time

# Relative spacing of neighbouring numbers; whatever is stored otherwise is not compared.
_SPACING = {"F64": 1e-6, "F32": 1e-6, "F16": 2.0**-10, "BF16": 2.0**-7}
_ARRAYS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Stored:
    """A tensor on disk."""

    dtype: str  # As safetensors calls it.
    shape: tuple[int, ...]
    # Its numbers, mapped, bfloat16 as 16-bit integers; None where they are no floats.
    raw: npt.NDArray[Any] | None

    def differs(self, other: Stored, *, transposed: bool = False) -> bool:
        """Whether any number differs by more than what rounding to the coarser type explains."""
        if self.raw is None or other.raw is None:
            return True
        mine, theirs = self.raw.reshape(self.shape), other.raw.reshape(other.shape)
        if transposed:
            theirs = theirs.T
        if mine.shape != theirs.shape:
            return True
        if mine.ndim == 0:
            mine, theirs = mine[None], theirs[None]
        spacing = max(_SPACING[self.dtype], _SPACING[other.dtype])
        step = max(1, _ROWS // max(1, mine[0].size))
        # A few rows tell most strangers apart.
        for start in (0, *range(1, len(mine), step)):
            rows = slice(start, start + (step if start else 1))
            left, right = _numbers(self, mine[rows]), _numbers(other, theirs[rows])
            if not np.allclose(left, right, rtol=spacing, atol=1e-7, equal_nan=True):
                return True
        return False


def _numbers(stored: Stored, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if stored.dtype == "BF16":
        return (np.asarray(values).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values).astype(np.float32)


@dataclass(frozen=True)
class Weights:
    """Weights of a model as one file, or as shards with an index."""

    head: Path  # The file that names them to a user: the only one, or the index.

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files with numbers in them, whether they exist or not."""
        if self.head.suffix != ".json":
            return (self.head,)
        stated = read_object(self.head).get("weight_map")
        if not isinstance(stated, Mapping) or not stated:
            raise ModelError(f"{self.head} names no files of weights: save the model again.")
        return tuple(self.head.parent / name for name in sorted(set(map(str, stated.values()))))

    @property
    def damage(self) -> str | None:
        """Why they cannot be read, and what helps; None where they look whole."""
        missing = [file.name for file in self.files if not is_named(file)]
        if missing:
            return (
                f"{self.head.name} names {len(self.files)} files, of which {len(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not there: {listed(missing)}. Copy the "
                "missing ones, or download the model again."
            )
        return next(filter(None, map(damage, self.files)), None)

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """Every tensor by its name."""
        found: dict[str, Stored] = {}
        for file in self.files:
            found |= _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
        return found

    def difference(self, other: Weights) -> str | None:
        """Name of a tensor in which two files differ, None where they hold the same model."""
        mine, theirs = self.tensors, other.tensors
        shared = mine.keys() & theirs.keys()
        alone = sorted(n for n in mine.keys() ^ theirs.keys() if IN_A_LAYER.search(n))
        if not shared or alone:
            return alone[0] if alone else next(iter(mine), "all of them")
        # Integers are buffers, such as positions.
        floats = (n for n in sorted(shared) if mine[n].raw is not None)
        return next((n for n in floats if mine[n].differs(theirs[n])), None)


def find_weights(folder: Path) -> tuple[Weights, ...]:
    """All weights in a folder that transformers would read, those first that it takes."""
    return tuple(Weights(folder / name) for name in _NAMES if is_named(folder / name))


def lone_shards(folder: Path) -> str | None:
    """What is wrong where shards have lost their index; None where there is no such."""
    shards = sorted(p.name for p in folder.iterdir() if _SHARD.search(p.name))
    if not shards:
        return None
    match = _SHARD.search(shards[0])
    assert match is not None
    stem = "model.safetensors" if match[2] == "safetensors" else "pytorch_model.bin"
    return (
        f"it holds {len(shards)} of {int(match[1])} files of weights, but not {stem}.index.json, "
        "which says what is in which: copy it as well, or download the model again."
    )


def damage(path: Path) -> str | None:
    """Why a file cannot be what its name says, and what helps; None where it may be."""
    # Pointers of Git LFS and git-annex, dangling links, empty files, web pages, files that are cut
    # off.
    if not path.exists():
        return (
            f"{path.name} is a link to a file that does not exist: copy what it points to "
            "(cp -L), or download the model again."
        )
    size = path.stat().st_size
    if not size:
        return f"{path.name} is empty (0 bytes): download or save it again."
    try:
        with path.open("rb") as stream:
            start = stream.read(_POINTER_BYTES)
    except PermissionError:  # safetensors writes files that only their owner reads
        return f"{path.name} may not be read by this user: allow it (chmod a+r), or copy it."
    if start.startswith((b"version https://git-lfs", b"version https://hawser")):
        stated = re.search(rb"\nsize (\d+)", start)
        what = f" of the {int(stated[1]):,} bytes" if stated else ""
        return (
            f"{path.name} is a Git LFS pointer to the file, {size} bytes instead{what}: run "
            "'git lfs install' and 'git lfs pull' in that directory, or download it with "
            "'hf download'."
        )
    if size < _POINTER_BYTES and b"/annex/objects/" in start:
        return f"{path.name} is a git-annex pointer to the file: run 'git annex get' there."
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return (
            f"{path.name} is a web page, not the file: the download needed a login or another "
            "address. Download it with 'hf download'."
        )
    if path.suffix == ".safetensors":
        return _safetensors_damage(path, size)
    if path.suffix in (".bin", ".pt", ".pth"):
        if start[:2] == b"PK" and not zipfile.is_zipfile(path):
            return f"{path.name} is cut off ({size:,} bytes are there): copy it again."
        if start[:2] != b"PK" and start[:1] != b"\x80":
            return f"{path.name} was not written by torch.save: copy it again, or save it anew."
    return None


def damaged_json(path: Path) -> str | None:
    """The same for a file with a JSON object."""
    found = damage(path)
    if found is None:
        try:
            read_object(path)
        except ModelError as error:
            return str(error)
    return found


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is no JSON ({error}): copy it again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path.name} holds no JSON object, but a {type(value).__name__}.")
    return value


def is_named(path: Path) -> bool:
    """Whether there is such a file, or a link that should lead to one."""
    return path.is_file() or path.is_symlink()


def _safetensors_damage(path: Path, size: int) -> str | None:
    try:
        header, begin = _header(path)
        end = begin + max((int(e["data_offsets"][1]) for e in header.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error):
        return (
            f"{path.name} is no safetensors file, or cut off within its header ({size:,} bytes): "
            "copy or download it again."
        )
    if end != size:
        what = "is cut off" if end > size else "has bytes after its end"
        return (
            f"{path.name} {what}: its header describes {end:,} bytes, {size:,} are there. Copy or "
            "download it again."
        )
    return None


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Tensors that a safetensors file describes, and where their bytes begin."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _safetensors(path: Path) -> dict[str, Stored]:
    header, begin = _header(path)
    found = {}
    for name, entry in header.items():
        kind, shape = str(entry["dtype"]), tuple(map(int, entry["shape"]))
        offset = begin + int(entry["data_offsets"][0])
        found[name] = Stored(kind, shape, mapped(path, kind, offset, shape))
    return found


def mapped(path: Path, kind: str, offset: int, shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    """Floats in a file without reading them; None for other types."""
    count = int(np.prod(shape, dtype=np.int64))
    if kind not in _ARRAYS:
        return None
    if not count:
        return np.zeros(0, _ARRAYS[kind])
    return np.memmap(path, _ARRAYS[kind], "r", offset, (count,))


def _pickled(path: Path) -> dict[str, Stored]:
    import torch

    try:
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
        if isinstance(state.get("state_dict"), Mapping):  # of a trainer
            state = state["state_dict"]
        return {
            str(name): _of_torch(value) for name, value in state.items() if hasattr(value, "dtype")
        }
    except Exception as error:  # pickle raises whatever a damaged or foreign file makes it do
        raise ModelError(
            f"{path.name} cannot be read as tensors alone ({type(error).__name__}): load it where "
            "it was made and save it with save_pretrained, which writes safetensors."
        ) from error


def _of_torch(value: Any) -> Stored:
    import torch

    kinds = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16"}
    shape = tuple(value.shape)
    if value.dtype == torch.bfloat16:
        return Stored(
            "BF16", shape, value.contiguous().view(torch.int16).numpy().view(np.uint16).ravel()
        )
    if value.dtype in kinds:
        return Stored(kinds[value.dtype], shape, value.detach().contiguous().numpy().ravel())
    return Stored(str(value.dtype).removeprefix("torch."), shape, None)


def listed(names: Iterable[str], shown: int = 3) -> str:
    """Some names, and how many more there are."""
    found = sorted(names)
    more = f" and {len(found) - shown} more" if len(found) > shown else ""
    return f"{', '.join(found[:shown])}{more}"

"""YAML files that people write: read strictly, so that no line of theirs is lost silently."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from .errors import InputError
from .remote_files import is_remote, local_copy

_DEEPEST = 100
_LARGEST = 1_000_000


def read_yaml(path: str | os.PathLike[str], name: str, error: type[InputError] = InputError) -> Any:
    """Contents of a YAML file, in which no mapping has the same key twice."""
    # PyYAML takes the last of them, although YAML wants keys to be unique (YAML 1.2.2, section
    # 3.2.1.3). Keys that a merge (``<<``) brings in may be given anew, as ever.
    import yaml

    try:
        if is_remote(path):
            with local_copy(str(path)) as copied:
                text = _read(copied)
        else:
            text = _read(Path(path))
        if _depth(text) > _DEEPEST:
            raise error(f"{name} is nested more than {_DEEPEST} levels deep: write it flatter.")
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None and (repeated := _repeated_key(root)):
            raise error(f"{name}: {repeated}; keep one of the two.")
        return yaml.safe_load(text)
    except RecursionError as problem:
        raise error(f"{name} is nested too deeply: write it flatter.") from problem
    except OSError as problem:
        reason = problem.strerror or problem
        raise error(f"{name} cannot be read: {reason}.") from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise error(f"{name} is not valid YAML: {problem}") from problem


def _read(path: Path) -> str:
    """The text of a file that people may have written."""
    if path.exists() and not path.is_file():
        raise OSError("it is no file")
    if path.stat().st_size > _LARGEST:
        raise OSError(f"it has {path.stat().st_size} bytes, at most {_LARGEST} are read")
    return path.read_text(encoding="utf-8")


def _depth(text: str) -> int:
    """About how deep brackets and indentation go; PyYAML's time grows with its square."""
    depth = deepest = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if mark in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    indented = max((len(line) - len(line.lstrip(" ")) for line in text.splitlines()), default=0)
    return max(deepest, indented // 2)


def _repeated_key(root: Any) -> str | None:
    """The first key that its mapping has already, and the lines of both; None without one."""
    # Looked for before anything is merged: a merge brings in keys that may be given anew.
    pending, done = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in done:  # an alias of it was seen before
            continue
        done.add(id(node))
        if node.id == "sequence":
            pending += reversed(node.value)
        elif node.id == "mapping":
            marks: dict[tuple[str, str], Any] = {}
            for key in (key for key, _ in node.value if key.id == "scalar"):
                first = marks.setdefault((key.tag, key.value), key.start_mark)
                if first is not key.start_mark:
                    lines = f"lines {first.line + 1} and {key.start_mark.line + 1}"
                    return f"the key {key.value!r} is given twice, in {lines}"
            pending += [value for _, value in reversed(node.value)]
    return None

"""Whether compiled Python files are what the source next to them compiles to.

Run as a script in a process of its own: what reads byte code may crash on what was made to crash
it (https://docs.python.org/3/library/marshal.html).
"""

from __future__ import annotations

import importlib.util
import marshal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType

_HEADER = 16  # Magic number, flags, and what tells whether the source changed.
_SECONDS = 60


def unlike_their_source(files: Sequence[Path]) -> list[Path]:
    """Those of some compiled files that are not, or not seen to be, their source compiled."""
    if not files:
        return []
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__], input="\0".join(map(str, files)),
            capture_output=True, text=True, check=False, timeout=_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return list(files)
    alike = set(done.stdout.split("\0")) if done.returncode == 0 else set()
    return [path for path in files if str(path) not in alike]


def _alike(path: Path) -> bool:
    try:
        content = path.read_bytes()
        source = Path(importlib.util.source_from_cache(str(path)))
        # Another Python's cannot be read here; its source may be compiled to anything.
        if content[:4] != importlib.util.MAGIC_NUMBER:
            return False
        level = path.suffixes[-2].removeprefix(".opt-") if ".opt-" in path.name else "0"
        own = compile(source.read_bytes(), "", "exec", dont_inherit=True, optimize=int(level))
        return _canonical(own) == _canonical(marshal.loads(content[_HEADER:]))
    except (OSError, ValueError, TypeError, EOFError, SyntaxError, AttributeError, IndexError):
        return False


def _canonical(code: CodeType) -> bytes:
    # Up to version 2 nothing is written by reference, which depends on what else is in memory.
    return marshal.dumps(_without_place(code), 2)


def _without_place(code: CodeType) -> CodeType:
    """Code without the file name, which is where it was compiled."""
    inner = (_without_place(c) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_filename="", co_consts=tuple(inner))


if __name__ == "__main__":
    names = sys.stdin.read().split("\0")
    print(*(name for name in names if _alike(Path(name))), sep="\0", end="")

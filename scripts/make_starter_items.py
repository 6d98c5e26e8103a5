"""Generate the items of the starter suite.

::

    python -m venv .venv-items
    .venv-items/bin/pip install -r scripts/starter_requirements.txt
    .venv-items/bin/python scripts/make_starter_items.py

writes ``mlflow_degrade/evaluation/starter/items/<task>.jsonl.gz`` and lists the files with their
checksums in ``PROVENANCE.md`` beside them. Name tasks to generate only those. The result depends
on the pinned packages alone.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
from pathlib import Path

from starter_items.items import assemble, to_lines

TASKS = ("agreement", "definitions", "geography", "inflection", "numbers", "relations")
TARGET = Path(__file__).parents[1] / "mlflow_degrade" / "evaluation" / "starter" / "items"
MARKER = "<!-- written by scripts/make_starter_items.py -->\n"


def lines(name: str) -> bytes:
    """The uncompressed items of one task, given its name without the ``starter_`` prefix."""
    source = importlib.import_module(f"starter_items.{name}")
    return to_lines(assemble(f"starter_{name}", source.drafts(), source.QUOTA))


def compress(content: bytes) -> bytes:
    """Gzip without name or time."""
    return gzip.compress(content, compresslevel=9, mtime=0)


def record(target: Path) -> None:
    """Write the table of files at the end of PROVENANCE.md."""
    rows = ["| file | items | shipped | content |", "|---|---|---|---|"]
    for file in sorted(target.glob("*.jsonl.gz")):
        packed = file.read_bytes()
        content = gzip.decompress(packed)
        digests = (hashlib.sha256(data).hexdigest() for data in (packed, content))
        rows.append(f"| {file.name} | {len(content.splitlines())} | {' | '.join(digests)} |")
    path = target.parent / "PROVENANCE.md"
    head, marker, _ = path.read_text(encoding="utf-8").partition(MARKER)
    path.write_text("\n".join([head + marker, *rows, ""]), encoding="utf-8")


def main() -> None:
    """Write the items, and the table of files in PROVENANCE.md."""
    parser = argparse.ArgumentParser(description="Generate the items of the starter suite.")
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; default all")
    arguments = parser.parse_args()
    for name in arguments.tasks or TASKS:
        content = lines(name)
        packed = compress(content)
        (TARGET / f"starter_{name}.jsonl.gz").write_bytes(packed)
        print(f"starter_{name}: {len(content.splitlines())} items, {len(packed):,} bytes")
    record(TARGET)


if __name__ == "__main__":
    main()

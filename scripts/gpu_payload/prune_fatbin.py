"""Blank the kernels of other GPU architectures in a CUDA library, so that it packs small.

    python prune_fatbin.py libonnxruntime_providers_cuda.so out.so [--arch 90]

Offsets and size stay the same; only payloads of fat binary entries for other architectures become
zeros, which compress to nothing (231 MB of onnxruntime-gpu 1.31.1 become 54 MB for sm_90). A
machine with a GPU of that architecture runs it as before. For transport only.
"""

import argparse
import struct
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)


def entries(data: bytearray, start: int, end: int) -> list[tuple[int, int, int, int]] | None:
    """(kind, architecture, payload offset, payload size) of a fat binary; None if it is none."""
    found, at = [], start
    while at < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
        if kind not in (1, 2) or not 32 <= header <= 200 or at + header + size > end:
            return None
        found.append((kind, struct.unpack_from("<I", data, at + 28)[0], at + header, size))
        at += header + size
    return found


def prune(data: bytearray, arch: int) -> None:
    """Blank everything but machine code for `arch`; where there is none, but PTX up to it."""
    at = data.find(MAGIC)
    while at >= 0:
        version, header, size = struct.unpack_from("<HHQ", data, at + 4)
        end = at + header + size
        found = (
            entries(data, at + header, end)
            if (version, header) == (1, 16) and end <= len(data)
            else None
        )
        if found is None:
            at = data.find(MAGIC, at + 4)
            continue
        kept = [e for e in found if e[:2] == (2, arch)] or [
            e for e in found if e[0] == 1 and e[1] <= arch
        ]
        for entry in found:
            if entry not in kept:
                data[entry[2] : entry[2] + entry[3]] = bytes(entry[3])
        at = data.find(MAGIC, end)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", type=int, default=90)
    given = parser.parse_args()
    content = bytearray(given.library.read_bytes())
    prune(content, given.arch)
    given.out.write_bytes(content)

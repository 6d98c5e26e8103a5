"""Markdown tables, and the places of a document that they are written to."""

from __future__ import annotations

import re


def markdown(header: list[str], rows: list[list[str]], note: str) -> str:
    """A Markdown table with a line below it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", note])


def replace_between_markers(text: str, tables: dict[str, str]) -> str:
    """Put tables between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``."""
    for name, table in tables.items():
        pattern = rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)"
        if not re.search(pattern, text, flags=re.DOTALL):
            raise SystemExit(f"the document has no markers for {name!r}: add {pattern!r}")
        text = re.sub(
            pattern, lambda found, t=table: f"{found[1]}{t}\n{found[2]}", text, flags=re.S
        )
    return text

"""Count what the package's structure is judged by: rooms, layers of imports, circles, files, lines.

python scripts/structure.py            # this tree
python scripts/structure.py OTHER      # another checkout
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

_LINES = ("code", "docstrings", "comments", "blank")


def imports(package: Path) -> dict[str, set[str]]:
    """The modules that are loaded with each module."""
    files = {
        ".".join(p.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): p
        for p in sorted(package.rglob("*.py"))
    }
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        home = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        found = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                base = home[: len(home) - node.level + 1] if node.level else []
                origin = ".".join([*base, *([node.module] if node.module else [])])
                targets = (f"{origin}.{alias.name}" for alias in node.names)
                found |= {target if target in files else origin for target in targets}
        graph[name] = found & set(files) - {name}
    return graph


def layers(graph: dict[str, set[str]]) -> tuple[int, set[str]]:
    """Length of the longest chain of imports between rooms, and the modules that are in circles."""
    left, depth = dict(graph), 0
    while ends := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in ends}
        depth += 1
    return depth, set(left)


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between the entries of the package's top level."""
    found: dict[str, set[str]] = {}
    for name, others in graph.items():
        if "." in name:
            room = name.split(".")[1]
            found.setdefault(room, set()).update(o.split(".")[1] for o in others if "." in o)
    return {room: others - {room} for room, others in found.items()}


def lines(path: Path) -> dict[str, int]:
    """Lines of code, docstrings, comments, and blank ones."""
    text = path.read_text(encoding="utf-8")
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        found = node.value if isinstance(node, ast.Expr) else None
        if isinstance(found, ast.Constant) and isinstance(found.value, str):
            docs |= set(range(found.lineno, (found.end_lineno or found.lineno) + 1))
    count = dict.fromkeys(_LINES, 0)
    for number, line in enumerate(text.splitlines(), start=1):
        kind = "docstrings" if number in docs else "blank" if not line.strip() else "code"
        count["comments" if kind == "code" and line.lstrip().startswith("#") else kind] += 1
    return count


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    package = root / "mlflow_degrade"
    graph = imports(package)
    files = sorted(package.rglob("*.py"))
    between = rooms(graph)
    depth, circles = layers(between)
    counts = [lines(path) for path in files]
    print(f"rooms at the top level   {len(between)}: {', '.join(sorted(between))}")
    print(f"layers of rooms          {depth}, {len(circles)} rooms in circles")
    print(f"modules in circles       {len(layers(graph)[1])}")
    print(f"files                    {len(files)}")
    total = 0
    for kind in _LINES:
        number = sum(count[kind] for count in counts)
        total += number
        print(f"{kind:<25}{number:,}")
    print(f"{'lines':<25}{total:,}")


if __name__ == "__main__":
    main()

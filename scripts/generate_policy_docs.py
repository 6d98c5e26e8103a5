"""Write the tables of keys in docs/policy.md from the policy models, so that they cannot drift.

Run ``python scripts/generate_policy_docs.py``; with ``--check`` it only says whether the file is
current, by its exit code. The rest of the page is written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mlflow_degrade import GatePolicy, JudgePolicy, TaskPolicy
from mlflow_degrade.cli.options import meanings as known_meanings
from mlflow_degrade.decision.policy import CostPolicy, SequentialPolicy
from mlflow_degrade.samples.pairing import ALLOWABLE

TARGET = Path(__file__).parents[1] / "docs" / "policy.md"

# JSON Schema's names of limits, as people write them.
_LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
_SAID = {
    "evidence_experiments": "list of names",
    "judge": "mapping of [its keys](#keys-of-a-judge)",
    "sequential": (
        "`true` or `population`, `suite`, `informed`, `false`, or mapping of "
        "[its keys](#keys-of-sequential)"
    ),
    "cost": "mapping of [its keys](#keys-of-cost)",
    "floors": "mapping from a task's name or a pattern to a number, or `>= 0.62`",
    "relative_drop": "number, > 0, < 1, or `1%`",
    **dict.fromkeys(("decode_speedup", "prefill_speedup", "encode_speedup"), "number or `>= 1.3`"),
    **dict.fromkeys(("size_ratio", "memory_ratio", "energy_ratio"), "number or `<= 0.5`"),
    "apply_chat_template": "`true`, `false`, or a template's name",
    "gen_kwargs": "mapping of [arguments](chat.md#generation-arguments)",
}
_TYPES = {
    "number": "number",
    "integer": "whole number",
    "string": "text",
    "boolean": "`true` or `false`",
}


def render(page: str) -> str:
    """The page with its tables made again."""
    for model in (GatePolicy, TaskPolicy, JudgePolicy, SequentialPolicy, CostPolicy):
        begin, end = (f"<!-- {word}: keys of {model.__name__} -->" for word in ("begin", "end"))
        if page.count(begin) != 1 or page.count(end) != 1:
            raise SystemExit(f"{TARGET} must hold {begin} and {end} once each")
        head, rest = page.split(begin)
        tail = rest.split(end)[1]
        page = f"{head}{begin}\n{_table(model)}\n{end}{tail}"
    return page


def _table(model: type[BaseModel]) -> str:
    meanings = {name: text.replace("``", "`") for name, text in known_meanings(model).items()}
    properties = model.model_json_schema()["properties"]
    if missing := sorted(set(properties) ^ set(meanings)):
        raise SystemExit(f"{model.__name__}: keys and docstring differ in {missing}")
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name in meanings:
        schema = properties[name]
        value = schema.get("default")
        shown = str(value).lower() if isinstance(value, bool) else value
        default = "none" if value in (None, []) else f"`{shown}`"
        lines.append(f"| `{name}` | {_value(name, schema)} | {default} | {meanings[name]} |")
    return "\n".join(lines)


def _value(name: str, schema: dict[str, Any]) -> str:
    """Type and limits in words."""
    if name == "tasks":
        return "mapping from a task's name or a pattern to [its keys](#keys-of-a-task)"
    if name in _SAID:
        return _SAID[name]
    if name == "allow":
        names = ", ".join(f"`{allowed}`" for allowed in ALLOWABLE)
        return f"list of [refusals](#refusals-that-can-be-allowed): {names}"
    options = [option for option in schema.get("anyOf", [schema]) if option["type"] != "null"]
    if len(options) != 1 or options[0]["type"] not in _TYPES:
        raise SystemExit(f"say in {Path(__file__).name} what {name} is: {schema}")
    option = options[0]
    if "enum" in option:
        return " or ".join(f"`{choice}`" for choice in option["enum"])
    limits = [f"{sign} {option[key]:g}" for key, sign in _LIMITS.items() if key in option]
    return ", ".join([_TYPES[option["type"]], *limits])


def main() -> None:
    page = TARGET.read_text(encoding="utf-8")
    made = render(page)
    if "--check" in sys.argv[1:]:
        if made != page:
            raise SystemExit(f"{TARGET} is not current: run python {Path(__file__).name}")
        return
    TARGET.write_text(made, encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()

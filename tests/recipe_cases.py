"""Multiple-choice items for recipe tests, and the lm-eval tasks that ask them."""

from __future__ import annotations

import io
import json
import random
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from mlflow_degrade.cli import run

_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
_WORDS = [
    "harbour",
    "boat",
    "letter",
    "drawer",
    "iron",
    "water",
    "train",
    "coast",
    "village",
    "car",
]


def write_task(folder: Path, name: str, items: list[dict[str, object]]) -> None:
    """An lm-eval multiple-choice task with its own items."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / f"{name}.yaml").write_text(_TASK.format(name=name, data=data))


def make_items(count: int, seed: int) -> list[dict[str, object]]:
    """Items with random choices; a random model answers half of them."""
    draw = random.Random(seed)
    items = []
    for number in range(count):
        question = f"{number}. The {draw.choice(_WORDS)} and the {draw.choice(_WORDS)} are"
        choices = draw.sample(_WORDS, 2)
        items.append({"question": question, "choices": choices, "answer": draw.randrange(2)})
    return items


@dataclass(frozen=True)
class Done:
    """How a command ended, and all it said."""

    exit_code: int
    output: str


def invoke(*arguments: str) -> Done:
    """A command in this process, as a shell would see it end."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = run(arguments)
    return Done(code, said.getvalue())

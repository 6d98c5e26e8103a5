"""The commands that README and documentation show, each as a shell would get it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from installed import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What a test cannot have, each with the reason why; the rest is executed. First match counts.
NEEDS = (
    (r"^pip install|^pip download", "a package index; another test is about these"),
    (r"\borg/|--tasks (?:gsm8k|arc_easy|ifeval)|hellaswag|,arc_easy", "a model or tasks of a hub"),
    (r"my-tasks|\./scifact|judged\.csv|labelled\.csv|my-classifier|my_labels",
     "a model and data of the reader's; tests/recipes and tests/evaluation have such"),
    (r"^mlflow run recipes/(?!gate)|^mlflow-degrade (?:quantize|sens)|=starter\b|starter-enc",
     "the starter model, for minutes; tests/recipes/test_quantize_starter.py and .ci/run do it"),
    (r"^mlflow-degrade bench", "minutes of measuring; tests/cli/test_bench_command.py does it"),
    (r"^mlflow-degrade assist", "minutes of generating; tests/cli/test_assist_command.py does it"),
    (r"candidates --plot", "costs that a recipe measured; tests/tracking has such"),
    (r"gate .*tasks[= ]mine\.csv", "registered models that can be asked; tests/tracking has them"),
    (r"cuda|on_a_gpu", "a GPU, and data"),
    (r"^python benchmarks/", "an hour"),
    (r"^mlflow server|^export |mkdocs serve|postgresql|^curl", "a server that keeps running"),
    (r"^openssl genpkey .*-aes256", "a password that is typed"),
    (r"^model_signing|--model \./chat", "files that an earlier command of the page fetched"),
    (r"^pytest", "this very run"),
    (r"\.marks", "the example plugin installed; tests/test_plugins.py does it"),
    (r"model-Q8_0\.gguf", "a GGUF file; tests/optimize has tiny ones"),
    (r"mlflow-degrade noise .*--log$", "two machines"),
    (r"noise --model|--noise noise\.json|--rerun kept",
     "a model that is run several times; tests/cli/test_noise_reruns.py and tests/tracking do it"),
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """One command of a page."""

    page: Path
    text: str

    @property
    def needs(self) -> str | None:
        """Why it cannot be executed here, if it cannot."""
        return next((why for pattern, why in NEEDS if re.search(pattern, self.text)), None)

    def __str__(self) -> str:
        return f"{self.page.stem}: {self.text}"


def blocks(text: str, *languages: str) -> Iterator[str]:
    """The code blocks of a page in some languages."""
    for language, body in re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", text, re.M | re.S):
        if language in languages:
            yield body


def commands(page: Path) -> Iterator[Shown]:
    """The commands in a page's blocks of shell, without comments, one by one."""
    for body in blocks(page.read_text(encoding="utf-8"), "bash", "sh", "shell", "console"):
        joined = re.sub(r"\\\n\s*", "", body)
        for line in joined.splitlines():
            plain = re.sub(r"(^|\s+)#.*$", "", line).strip()
            for part in filter(None, (p.strip() for p in plain.split("&&"))):
                yield Shown(page, part)


ALL = [shown for page in PAGES for shown in commands(page)]

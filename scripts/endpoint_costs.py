"""What an endpoint costs and changes against the same model in process, in interleaved rounds.

python scripts/endpoint_costs.py BASE_URL FOLDER [key=value,…] [--levels 1,4,16] [--rounds 5]

FOLDER is what is served: a model directory of this package (with protocol=mlflow), or one of
transformers. Scores the starter suite's prompts over HTTP and in process, and says the largest
difference, the ratio of times, and how much answers change between levels of concurrency.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance


def requests(count: int) -> list[Instance]:
    """Multiple-choice questions of the starter suite, one request per choice."""
    from mlflow_degrade.evaluation.suite import load_suite

    suite = load_suite(["starter"], limit=count)
    found: list[Instance] = []
    for task in suite.tasks:
        own = task.task
        for index, document in enumerate(task.documents()):
            context, choices = own.doc_to_text(document), own.doc_to_choice(document)
            found += [
                Instance("loglikelihood", {}, (context, f" {choice}".replace("  ", " ")), index)
                for choice in choices
            ]
    return found


def local(folder: Path) -> Any:
    """The model in process."""
    if (folder / "model.onnx").is_file():
        from mlflow_degrade.evaluation.backend import OnnxLM

        return OnnxLM(str(folder), device="cpu")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8)


def main() -> None:
    """Measure and print JSON."""
    from mlflow_degrade.evaluation.endpoint_backend import EndpointLM

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("arguments", nargs="?", default="")
    parser.add_argument("--levels", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=4, help="documents per task")
    given = parser.parse_args()
    extra = dict(part.split("=", 1) for part in given.arguments.split(",") if part)
    asked, levels = requests(given.count), [int(level) for level in given.levels.split(",")]

    def served(level: int) -> Any:
        return EndpointLM(
            base_url=given.base_url, tokenizer=str(given.folder), progress=False,
            dependent="kept", **{**extra, "concurrency": level, "rerun": time.time()},
        )  # fmt: skip

    here, there = local(given.folder), served(levels[-1])
    first = here.loglikelihood(asked)
    there.loglikelihood(asked[:20])  # probes are no part of what is timed
    seconds: dict[str, list[float]] = {"http": [], "in process": []}
    largest = 0.0
    for _ in range(given.rounds):
        there._journal._answers.clear()
        begin = time.perf_counter()
        found = there.loglikelihood(asked)
        middle = time.perf_counter()
        here.loglikelihood(asked)
        seconds["in process"].append(time.perf_counter() - middle)
        seconds["http"].append(middle - begin)
        apart = max(abs(a[0] - b[0]) for a, b in zip(found, first, strict=True))
        largest = max(largest, apart)
    ratios = [h / p for h, p in zip(seconds["http"], seconds["in process"], strict=True)]
    there.discard()
    changes = {}
    for level in levels:
        again = served(level)
        values = again.loglikelihood(asked)
        again.discard()
        apart = [abs(a[0] - b[0]) for a, b in zip(values, found, strict=True)]
        changes[level] = {"largest": max(apart), "greedy": sum(
            a[1] != b[1] for a, b in zip(values, found, strict=True)
        )}  # fmt: skip
    print(json.dumps({
        "requests": len(asked), "nats": largest, "ratio": statistics.median(ratios),
        "ratios": ratios, "seconds": seconds, "levels": changes, "facts": again.facts(),
        "found": again.findings(),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()

"""Real lm-eval output: its dummy model on small local tasks, logged with its own tracker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
"""

MULTIPLE_CHOICE = """doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: brier_score}]
metadata: {version: 1.5}
"""
YES_OR_NO = """doc_to_text: "Is it so? {{question}}"
doc_to_target: answer
doc_to_choice: ["yes", "no"]
metric_list: [{metric: acc}, {metric: f1}]
metadata: {version: 2.0}
"""
GENERATED = """doc_to_text: "{{question}}"
doc_to_target: word
generation_kwargs: {until: ["."], max_gen_toks: 5}
repeats: 2
metric_list: [{metric: exact_match}]
filter_list:
- name: strict-match
  filter: [{function: take_first}]
- name: flexible-extract
  filter: [{function: uppercase}, {function: take_first}]
metadata: {version: 3}
"""
ROLLING = """doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
LAST_WORD = """doc_to_text: "{{question}}"
doc_to_target: " {{word}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""
GROUP = """group: toy
task: [toy_choice, toy_yesno]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
"""
LARGER_GROUP = "{group: everything, task: [toy, toy_generate]}"

# Without bootstrap: it would take minutes for F1 and show nothing here.
RUN = """
import sys
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
for run in range(int(sys.argv[3])):
    tracker = EvaluationTracker(output_path=sys.argv[2])
    results = simple_evaluate(
        model="dummy", model_args="pretrained=models/dummy",
        tasks=["everything", "toy_rolling", "toy_lastword"],
        task_manager=TaskManager(include_path=sys.argv[1], include_defaults=False),
        log_samples=True, bootstrap_iters=0, evaluation_tracker=tracker, random_seed=run,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
"""


@pytest.fixture(scope="session")
def lm_eval_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output directory of two runs of one model, seconds apart."""
    root = tmp_path_factory.mktemp("lm_eval")
    with (root / "docs.jsonl").open("w") as stream:
        for i in range(10):
            doc = {
                "question": f"What comes after number {i}?" + " Think." * i,
                "choices": [str(i + 1), str(i + 2), "nothing"],
                "answer": 0,
                "word": "lol" if i % 2 else "LOL",
                "topic": "odd" if i % 2 else "even",
                "digits": len(str(i)),
            }
            stream.write(json.dumps(doc) + "\n")
    tasks = root / "tasks"
    tasks.mkdir()
    for name, kind, body in (
        ("toy_choice", "multiple_choice", MULTIPLE_CHOICE),
        ("toy_yesno", "multiple_choice", YES_OR_NO),
        ("toy_generate", "generate_until", GENERATED),
        ("toy_rolling", "loglikelihood_rolling", ROLLING),
        ("toy_lastword", "loglikelihood", LAST_WORD),
    ):
        head = TASK.format(name=name, data=root / "docs.jsonl", kind=kind)
        (tasks / f"{name}.yaml").write_text(head + body)
    (tasks / "toy.yaml").write_text(GROUP)
    (tasks / "everything.yaml").write_text(LARGER_GROUP)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(root / "hf"),
    }
    subprocess.run(
        [sys.executable, "-c", RUN, str(tasks), str(root / "out"), "2"],
        check=True, capture_output=True, env=environment, cwd=root, timeout=600,
    )  # fmt: skip
    return root / "out"

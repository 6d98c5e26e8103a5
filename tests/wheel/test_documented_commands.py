"""Every command in README and documentation is executed with the wheel, in a folder as described.

What a test cannot have is listed in documented.NEEDS with its reason; those commands are still held
against the options that there are.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from documented import ALL, NEEDS, PAGES, Shown
from installed import ROOT, Environment
from packaging.requirements import Requirement

from mlflow_degrade import GatePolicy, cli, promote
from mlflow_degrade.registry.evidence_bundle import export_evidence
from mlflow_degrade.tracking.evaluations import log_evaluation

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "tracking"))
sys.path.insert(0, str(ROOT / "tests" / "readers"))

from engine_models import ModelDir, model_dir, tiny_source
from gate_cases import log_evaluated, make_samples, register_champion
from log_files import lm_folder, lm_record, lm_results
from mlflow_state import mlflow_state_kept
from mlflow_stores import use_empty_store

__all__ = ["model_dir", "tiny_source"]

_VERDICTS = {"compare", "gate", "noise", "demo"}


def test_there_are_commands_on_the_pages_that_matter() -> None:
    found = {shown.page.stem for shown in ALL}
    assert {"README", "index", "logs", "gate", "ci", "coming-from", "signing"} <= found
    assert len(ALL) > 80


def test_each_reason_is_needed() -> None:
    used = {shown.needs for shown in ALL} - {None}
    assert [why for _, why in NEEDS if why not in used] == []
    executed = [shown for shown in ALL if shown.needs is None]
    assert len(executed) > 45


def _own(shown: Shown) -> bool:
    return shown.text.startswith(("mlflow-degrade ", "mlflow run "))


@pytest.mark.parametrize(
    "shown",
    list(filter(_own, ALL)),
    ids=str,
)
def test_its_options_exist(shown: Shown) -> None:
    words = shlex.split(shown.text)
    if words[0] == "mlflow":
        _, _, project, *options = words
        main = yaml.safe_load((ROOT / project / "MLproject").read_text())["entry_points"]["main"]
        assert set(options[::2]) <= {"-P"}
        for option in options[1::2]:
            assert option.partition("=")[0] in main["parameters"], option
        return
    command, rest = cli.cli, words[1:]
    context = click.Context(command, info_name="mlflow-degrade")
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        assert found is not None, rest[0]
        command, rest = found, rest[1:]
    known = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
    given = {w.partition("=")[0] for w in rest if re.match(r"--?[a-zA-Z]", w)}
    assert given <= known | {"--help"}


def _pip_lines() -> Iterator[tuple[str, str, str]]:
    """What pip is told to install: where it stands, the arguments, and the section around it."""
    word = r"""(?:"[^"]+"|'[^']+'|[\w./\[\]<>=,~-]+)"""
    pattern = re.compile(rf"pip install ((?:-e )?{word}(?: (?!&&|and\b|brings\b)[\w.=-]+)*)")
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "examples").glob("*.y*ml"))]:
        text = page.read_text(encoding="utf-8")
        for match in pattern.finditer(text):
            start = text.rfind("\n#", 0, match.start())
            yield page.name, match[1], text[max(start, 0) : match.end()]
    for path in sorted((ROOT / "mlflow_degrade").rglob("*.py")):
        for match in pattern.finditer(path.read_text(encoding="utf-8")):
            yield path.name, match[1], ""


def test_what_pip_is_told_to_install_exists_for_who_has_the_wheel(environment: Environment) -> None:
    code = "print(*metadata('mlflow-degrade').get_all('Provides-Extra'))"
    code = f"from importlib.metadata import metadata; {code}"
    done = environment.run(environment.python, "-c", code, cwd=environment.folder)
    extras = set(done.stdout.split())
    assert {"cpu", "gpu", "signing"} <= extras
    seen = 0
    for where, arguments, section in _pip_lines():
        seen += 1
        words = shlex.split(arguments)
        if words[0] == "-e" or words[0].startswith("."):
            # Of use in a clone only, and said there.
            assert "clone" in section or where == "CONTRIBUTING.md", (where, arguments)
            extra = re.search(r"\[(.*)\]", arguments)
            assert extra is None or set(extra[1].split(",")) <= extras, (where, arguments)
            continue
        for word in words:
            if word.startswith("-") or "{" in word:
                continue
            wanted = Requirement(word)
            if wanted.name == "mlflow-degrade":
                assert wanted.extras <= extras, (where, arguments)
    assert seen > 20


# -- what the commands find ---------------------------------------------------------------


def _logs(folder: Path) -> None:
    """Per-sample logs of a baseline and of a candidate that is about as good, in all formats."""
    random = np.random.default_rng(7)
    n = 1500
    right = random.random(n) < 0.7
    lengths = random.integers(20, 400, n)
    flipped = random.random(n) < 0.02
    scores = {"fp32": right, "int8": right ^ flipped}
    for name, score in scores.items():
        wrong = np.where(score, "yes", "no")
        frame = pd.DataFrame({"task": "qa", "prompt_id": range(n), "score": score.astype(int)})
        frame["length"] = lengths
        frame["topic"] = np.where(np.arange(n) % 2, "algebra", "geometry")
        frame.assign(qid=frame["prompt_id"], f1=frame["score"]).to_csv(
            folder / f"{name}.csv", index=False
        )
        nested = [
            {"id": i, "metrics": {"em": int(s)}, "doc": {"query": f"question {i}"}}
            for i, s in enumerate(score)
        ]
        pd.DataFrame(nested).to_parquet(folder / f"{name}.parquet")
        lines = [{"id": i, "said": w, "gold": "yes"} for i, w in enumerate(wrong)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        other = "fp16" if name == "fp32" else "int8"
        for label in dict.fromkeys((name, other)):
            records = [
                lm_record(i, {"acc": float(s)}, resps=[[f"{label} {w}"]], filtered_resps=[w])
                for i, (s, w) in enumerate(zip(score, wrong, strict=True))
            ]
            about = _lm_about(label)
            lm_folder(folder / "results" / label, records, results=about)
            bundle = folder / "bundles" / ("fp8" if name == "int8" else "fp16")
        bundle.mkdir(parents=True)
        (bundle / "eval-1.json").write_text(json.dumps(_bundle_about(bundle.name)))
        (bundle / "results.jsonl").write_text(
            "".join(
                json.dumps({"problem_idx": i, "repeat": 0, "reward": float(s), "prompt": f"q {i}",
                            "model_response": f"{name} {w}", "expected_answer": "yes"}) + "\n"
                for i, (s, w) in enumerate(zip(score, wrong, strict=True))
            )
        )  # fmt: skip
    shutil.copy(folder / "fp32.csv", folder / "baseline.csv")
    shutil.copy(folder / "int8.csv", folder / "candidate.csv")
    for name in ("results/fp16_again", "results/int4", "there"):
        shutil.copytree(folder / "results" / "int8", folder / name)
    shutil.copytree(folder / "results" / "fp32", folder / "here")
    keys = pd.DataFrame({"task": "qa", "prompt_id": range(n)})
    wide = keys.assign(fp16_correct=scores["fp32"], int4_correct=scores["int8"])
    wide.astype({"fp16_correct": int, "int4_correct": int}).to_csv(
        folder / "scores.csv", index=False
    )
    sides = [keys.assign(score=scores[s].astype(int), model=m)
             for s, m in (("fp32", "fp16"), ("int8", "int4"))]  # fmt: skip
    pd.concat(sides).to_csv(folder / "all.csv", index=False)
    battles = pd.DataFrame({"id": range(n), "model_a": "fp16", "model_b": "int4"})
    battles["winner"] = np.where(random.random(n) < 0.5, "model_a", "model_b")
    battles.to_csv(folder / "battles.csv", index=False)
    tests = [
        {"provider": {"id": f"openai:{m}"}, "success": bool(s), "testIdx": i, "promptIdx": 0,
         "vars": {"q": f"question {i}"}, "response": {"output": f"{m} {s}"}, "score": float(s)}
        for m, side in (("fp16", "fp32"), ("int4", "int8"))
        for i, s in enumerate(scores[side])
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"version": 3, "results": {"results": tests}}))
    for date, side in (("2025-03-01", "fp32"), ("2025-03-02", "int8")):
        records = [lm_record(i, {"acc": float(s)}) for i, s in enumerate(scores[side])]
        stamp = f"{date}T10-00-00.000000"
        lm_folder(folder / "results" / "m", records, date=stamp, results=_lm_about("m"))
    ratings = random.integers(1, 11, n).astype(float)
    for name, shift in (("fp16", 0), ("q", 1)):
        table = keys.assign(rating=ratings, score=ratings)
        table.loc[:20, "score"] = np.clip(table.loc[:20, "score"] - shift, 1, 10)
        table.drop(columns="rating").to_csv(folder / f"{name}.csv", index=False)
    nats = random.normal(2.2, 0.05, 300)
    for name, more in (("fp16", 0.0), ("q4", 0.002)):
        means = np.exp(np.cumsum(nats + more + random.normal(0, 0.001, 300)) / np.arange(1, 301))
        chunks = ",".join(f"[{i}]{m:.4f}" for i, m in enumerate(means, 1))
        (folder / f"{name}.txt").write_text(
            "perplexity: calculating perplexity over 300 chunks, n_ctx=512, batch_size=512\n"
            f"{chunks},\nFinal estimate: PPL = {means[-1]:.4f} +/- 0.05\n"
        )


def _lm_about(label: str) -> dict[str, Any]:
    return lm_results("toy", model=f"org/{label}")


def _bundle_about(name: str) -> dict[str, Any]:
    config = {"model": name, "benchmark": "gsm8k", "repeats": 1}
    benchmark = {"name": "gsm8k", "samples": 1500, "scores": {}}
    return {"run_id": "eval-1", "config": config, "benchmark": benchmark}


@pytest.fixture(scope="module")
def described(
    tmp_path_factory: pytest.TempPathFactory, sources: Path, model_dir: ModelDir, tiny_source: Path
) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder that the pages describe, and the ids that stand for those shown on them."""
    folder = tmp_path_factory.mktemp("described")
    _logs(folder)
    (folder / "policy.yaml").write_text("margin_pp: 2\n")
    (folder / "recipes").symlink_to(sources / "recipes")
    questions = "question,answer\n" + "".join(f"What is {i} + 1?,{i + 1}\n" for i in range(8))
    (folder / "mine.csv").write_text(questions)
    for name, scheme in (
        ("fp32", "fp32"),
        ("int8", "int8-weight-only"),
        ("int4", "int4-weight-only"),
    ):
        for place in ("models", "olive"):
            (folder / place).mkdir(exist_ok=True)
            (folder / place / name).symlink_to(model_dir(scheme))
    (folder / "chat").symlink_to(tiny_source)
    _make_key(folder)
    with mlflow_state_kept():
        use_empty_store(folder)
        baseline = register_champion(folder)
        challenger, _ = log_evaluated(folder, "challenger", 11)
        promote(
            f"runs:/{challenger}",
            "models:/chat@champion",
            GatePolicy.from_yaml(folder / "policy.yaml"),
            alias="champion",
            signing_key=str(folder / "release.pem"),
        )
        export_evidence("models:/chat@champion", folder / "chat.evidence.zip")
        candidate, _ = log_evaluated(folder, "candidate", 12)
        for number in range(3, 8):
            _, uri = log_evaluated(folder, f"answer{number}", 10 + number)
            mlflow.register_model(uri, "chat")
        here, there = (_measured_on(wrong) for wrong in (10, 12))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_GENAI_EVAL_MAX_WORKERS", "1")  # SQLite takes one at a time
            judged = [_judged(wrong) for wrong in (3, 5)]
        yield (
            folder,
            {
                "baseline": baseline,
                "candidate": candidate,
                "here": here,
                "there": there,
                "judged baseline": judged[0],
                "judged candidate": judged[1],
            },
        )


def _measured_on(wrong: int) -> str:
    """A run of one and the same model, on some machine."""
    digest = f"sha256:{'5e' * 32}"
    with mlflow.start_run() as run:
        samples = make_samples(wrong, model="twin", digest=digest)
        log_evaluation(samples, {"model": digest, "suite": "suite"})
    return str(run.info.run_id)


def _judged(wrong: int) -> str:
    """A run of ``mlflow.genai.evaluate`` with two scorers."""
    from mlflow.genai.scorers import scorer

    @scorer
    def exact(outputs: str, expectations: dict[str, str]) -> bool:
        return outputs == expectations["expected_response"]

    @scorer
    def grounded(outputs: str) -> bool:
        return outputs != "made up"

    asked = [
        {"inputs": {"q": f"question {i}"}, "expectations": {"expected_response": "yes"},
         "outputs": "made up" if i < wrong else "yes"}
        for i in range(40)
    ]  # fmt: skip
    with mlflow.start_run() as run:
        mlflow.genai.evaluate(data=asked, scorers=[exact, grounded])
    return str(run.info.run_id)


def _make_key(folder: Path) -> None:
    key = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "release.pem"]
    subprocess.run(["openssl", "genpkey", *key], cwd=folder, check=True, capture_output=True)
    subprocess.run(
        ["openssl", "pkey", "-in", "release.pem", "-pubout", "-out", "release.pub"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


def _filled_in(shown: Shown, ids: dict[str, str]) -> str:
    """The command with runs that exist in the place of those it shows; ids short, as printed."""
    text, short = shown.text, {name: run_id[:8] for name, run_id in ids.items()}
    if shown.page.stem == "coming-from":  # runs of mlflow.genai
        short |= {side: short[f"judged {side}"] for side in ("baseline", "candidate")}
    if " noise " not in text:
        short |= {"here": short["candidate"]}
    text = re.sub(r"(--baseline )runs:/<\w+>", rf"\1runs:/{short['baseline']}", text)
    for side in ("baseline", "candidate", "here", "there"):
        text = text.replace(f"runs:/<{side}>", f"runs:/{short[side]}")
    text = text.replace("runs:/77d0e4c1", f"runs:/{short['baseline']}")
    return re.sub("runs:/(?:1f3c9ab2|<id>)", f"runs:/{short['candidate']}", text)


EXECUTED = [shown for shown in ALL if shown.needs is None]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("shown", EXECUTED, ids=str)
def test_it_runs(
    shown: Shown,
    described: tuple[Path, dict[str, str]],
    environment: Environment,
    tmp_path: Path,
    model_cache: Path,
) -> None:
    source, ids = described
    # Each in a copy: a gate moves the alias that the next one starts from.
    here = tmp_path / "here"
    shutil.copytree(source, here, symlinks=True)
    text = _filled_in(shown, ids)
    done = environment.run(
        "bash", "-c", text, cwd=here, HF_HUB_OFFLINE="1", MLFLOW_DEGRADE_CACHE=str(model_cache)
    )
    words = text.split()
    allowed = (0, 1, 2) if len(words) > 1 and words[1] in _VERDICTS else (0,)
    assert done.returncode in allowed, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr

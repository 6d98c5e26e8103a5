"""Decisions of one baseline, gathered from a real store: table, plot, JSON; nothing is written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from gate_cases import make_samples

from mlflow_degrade import GatePolicy, decide, pair
from mlflow_degrade.cli import run
from mlflow_degrade.core.errors import InputError, TrackingError, UnknownNameError
from mlflow_degrade.registry.candidates import find_candidates
from mlflow_degrade.registry.evidence import log_decision
from mlflow_degrade.registry.register_on_pass import log_conclusion
from mlflow_degrade.report.candidates import candidates_figure, choose_axis, pareto

_SCRIPT = Path(__file__).parents[2] / "scripts" / "take_screenshots.py"

pytestmark = pytest.mark.usefixtures("store")


def decided(wrong: int, name: str, *, base: str = "fp32", **cost: float) -> str:
    """Log a decision on a candidate with so many wrong answers; returns the run id."""
    sides = [make_samples(w, model=m, digest=f"sha256:{m}") for w, m in ((10, base), (wrong, name))]
    figures = None
    if cost:
        units = {"size": "size/bytes", "decode": "throughput/decode_tokens_per_second"}
        measured = {units[key]: (value, "x") for key, value in cost.items()}
        figures = {"baseline": dict.fromkeys(measured, (100.0, "x")), "candidate": measured}
    with mlflow.start_run(run_name=name) as active:
        log_conclusion(pair(*sides), GatePolicy(), cost=figures)
    return str(active.info.run_id)


def everything() -> list[tuple[Any, ...]]:
    """All that a read-only command must leave as it is."""
    runs = mlflow.MlflowClient().search_runs(["0"])
    return [
        (r.info.run_id, r.info.status, sorted(r.data.metrics.items()), sorted(r.data.tags.items()))
        for r in runs
    ]


def test_groups_share_the_baseline_and_repeats_are_one() -> None:
    first = decided(12, "int8", size=50, decode=200)
    slow = decided(40, "int4", size=30, decode=150)
    again = decided(12, "int8")
    other = decided(12, "int8", base="fp16")
    with mlflow.start_run(run_name="no decision"):
        mlflow.log_metric("x", 1)
    groups, notes = find_candidates()
    assert not notes
    assert [[c.run_id for c in group] for group in groups] == [[other], [again, slow]]
    newest, failed = groups[1]
    # The later decision measured nothing; the earlier one, on the same two models, did.
    assert newest.relative == {"size": 0.5, "throughput/decode": 2.0}
    assert failed.decision.verdict.value == "FAIL"
    assert (newest.name, newest.baseline) == ("int8", "fp32")
    groups, _ = find_candidates([first, f"runs:/{slow}"])
    assert [c.run_id for c in groups[0]] == [slow, first]


def test_front_and_axis() -> None:
    decided(12, "int8", size=50, decode=200)
    decided(40, "int4", size=30, decode=150)
    group = find_candidates()[0][0]
    assert [c.name for c in group] == ["int4", "int8"]
    assert choose_axis(group) == "throughput/decode"
    assert pareto(group, "throughput/decode") == [False, True]
    assert pareto(group, "size") == [True, True]
    with pytest.raises(UnknownNameError, match="unknown cost 'sise': did you mean 'size'"):
        choose_axis(group, "sise")
    axes = candidates_figure(group, choose_axis(group, "decode")).axes[0]
    assert axes.get_xlabel().startswith("decode throughput: times better")
    assert axes.get_ylim()[0] < -2  # the margin is seen


def test_the_command_shows_draws_and_writes_nothing_to_mlflow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    decided(12, "int8", size=50, decode=200)
    decided(40, "int4", size=30, decode=150)
    before = everything()
    assert run(["candidates", "--plot", "c.png", "--json", "-"]) == 0
    out, err = capfd.readouterr()
    listed = json.loads(out)["candidates"]
    assert [(c["candidate"]["model"], c["verdict"]) for c in listed] == [
        ("int4", "FAIL"), ("int8", "PASS"),
    ]  # fmt: skip
    assert listed[1]["pareto_front"] == ["size", "throughput/decode"]
    assert listed[0]["delta"] == pytest.approx(-30 / 1500)
    assert "looks better than it is" in " ".join(err.split())
    assert "2.00×" in err
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    for name in ("a.svg", "b.svg"):
        assert run(["candidates", "--plot", name, "--against", "size"]) == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert everything() == before


def test_what_cannot_be_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrackingError, match="no decision is logged"):
        find_candidates()
    one, two = decided(12, "int8"), decided(12, "int8", base="fp16")
    with mlflow.start_run(run_name="evaluation") as active:
        pass
    with pytest.raises(TrackingError, match="holds no decision"):
        find_candidates([active.info.run_id])
    with pytest.raises(TrackingError, match="cannot be read"):
        find_candidates(["0" * 32])
    with pytest.raises(UnknownNameError, match="did you mean 'Default'"):
        find_candidates(experiments=["default"])
    with pytest.raises(InputError, match="no cost was measured"):
        choose_axis(find_candidates()[0][0])
    for arguments, said in (
        ([one, two], "do not share one baseline"),
        (["--baseline", "bf16"], "no decision found has it"),
        (["--plot", "c.pdf"], "must end in .png or .svg"),
        (["--against", "size"], "give --plot as well"),
        (["--plot", "c.png"], "no cost was measured"),
    ):
        capfd.readouterr()
        assert run(["candidates", *arguments]) == 3
        assert said in capfd.readouterr().err
    assert run(["candidates", "--baseline", "fp32"]) == 0
    captured = capfd.readouterr()
    assert one[:8] in captured.out
    assert "1 more on other baselines" in captured.err


def test_a_run_whose_evidence_is_gone_is_passed_over() -> None:
    kept, broken = decided(12, "int8"), decided(40, "int4")
    uri = mlflow.get_run(broken).info.artifact_uri
    (Path(uri.removeprefix("file://")) / "evidence" / "decision.json").unlink()
    groups, notes = find_candidates()
    assert [c.run_id for c in groups[0]] == [kept]
    assert broken in notes[0]
    with pytest.raises(TrackingError, match=r"decision\.json cannot be read"):
        find_candidates([broken])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_store_of_the_screenshots_shows_every_verdict() -> None:
    spec = importlib.util.spec_from_file_location("take_screenshots", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    runs = script.make_store()
    group = find_candidates(list(runs.values()))[0][0]
    verdicts = {c.name.split()[-1]: c.decision.verdict.value for c in group}
    assert verdicts == {
        "int8-weight-only": "PASS", "int4-weight-only": "FAIL", "int8-dynamic": "INCONCLUSIVE",
    }  # fmt: skip
    client = mlflow.MlflowClient()
    for run_id in runs.values():
        names = {file.path for file in client.list_artifacts(run_id)}
        assert {"flips.json", "report.html", "report.md", "subgroups.json", "plots"} <= names
        metrics = client.get_run(run_id).data.metrics
        assert {"degrade/delta_pp", "degrade/ci_low_pp", "relative/size", "size/bytes"} <= set(
            metrics
        )
    text = mlflow.artifacts.load_text(f"runs:/{runs['int8-dynamic']}/subgroups.json")
    found = {f["name"]: f["found"] for f in json.loads(text)["features"]}
    assert found == {"task": False, "prompt_tokens": True}


def test_the_flips_are_the_first_of_a_runs_tables() -> None:
    # MLflow's page opens the first, and a recipe may have logged others before.
    policy = GatePolicy()
    paired = policy.pair(make_samples(10, model="a"), make_samples(40, model="b"))
    with mlflow.start_run() as active:
        mlflow.log_table({"layer": ["a"]}, "layers.json")
        log_decision(decide(paired, policy), paired)
    tags = mlflow.get_run(active.info.run_id).data.tags
    listed = [table["path"] for table in json.loads(tags["mlflow.loggedArtifacts"])]
    assert listed == ["flips.json", "layers.json"]

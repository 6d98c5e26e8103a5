"""Where scores were computed travels with them, and a policy can ask that it does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from mlflow_degrade import GatePolicy, SampleScores, Verdict, decide, pair
from mlflow_degrade.core.errors import PairingError, SampleSchemaError
from mlflow_degrade.decision.rerun import Rerun, compare_runs
from mlflow_degrade.decision.results import Decision
from mlflow_degrade.samples.origin import Agreement, Origin, Processor
from mlflow_degrade.samples.readers import read_samples

VNNI = Processor(
    architecture="x86_64",
    model="A",
    instruction_sets=("avx2", "avx512_vnni"),
    onnxruntime="1.31.1",
    threads=2,
)
PLAIN = VNNI.model_copy(update={"instruction_sets": ("avx2",), "model": "B"})
ROUNDING = ("MatMulNBits with 8-bit activations",)
PORTABLE = GatePolicy(portable=True)


def _scores(
    wrong: int = 0,
    *,
    processor: Processor | None = VNNI,
    operations: tuple[str, ...] | None = ROUNDING,
    agreements: tuple[Agreement, ...] = (),
    digest: str = "sha256:1",
    n: int = 800,
    first: int = 0,
) -> SampleScores:
    score = np.ones(n)
    score[first : first + wrong] = 0
    frame = pd.DataFrame({"task": "qa", "doc_id": range(n), "metric": "acc", "score": score})
    origin = None
    if processor is not None:
        origin = Origin(processor=processor, dependent_operations=operations, agreements=agreements)
    return SampleScores.from_pandas(frame, model="m", model_digest=digest, origin=origin)


def _decide(candidate: SampleScores, policy: GatePolicy = PORTABLE) -> Decision:
    return decide(pair(_scores(digest="sha256:0"), candidate), policy)


# -- the record ----------------------------------------------------------------------------


def test_it_travels_with_the_table(tmp_path: Path) -> None:
    scores = _scores(2)
    assert scores.origin is not None
    read = SampleScores.read_parquet(scores.write_parquet(tmp_path / "qa.parquet"))
    assert read.origin == scores.origin == read_samples(tmp_path).origin
    assert scores.with_model("other").select(["qa"]).origin == scores.origin
    assert SampleScores.concat([scores]).origin == scores.origin
    # What was computed elsewhere has the same scores, and so the same digest.
    assert (
        _scores(2, processor=PLAIN).digest()
        == scores.digest()
        == _scores(2, processor=None).digest()
    )


def test_tables_of_two_processors_are_not_stacked() -> None:
    with pytest.raises(SampleSchemaError, match=r"different processors .*'x86_64 A avx2 avx512"):
        SampleScores.concat([_scores(), _scores(processor=PLAIN)])
    with pytest.raises(SampleSchemaError, match=r"different processors .*unknown"):
        SampleScores.concat([_scores(), _scores(processor=None)])


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    scores = _scores()._stating(origin={"processor": {"architecture": "quantum"}})
    pq.write_table(scores.table, tmp_path / "qa.parquet")
    with pytest.raises(SampleSchemaError, match="upgrade mlflow-degrade"):
        SampleScores.read_parquet(tmp_path / "qa.parquet")


def test_the_decision_names_both_processors() -> None:
    decision = decide(pair(_scores(digest="sha256:0"), _scores(1)), GatePolicy())
    assert decision.processors == {"baseline": VNNI, "candidate": VNNI}
    assert Decision.from_json(decision.to_json()) == decision
    assert decide(
        pair(_scores(processor=None, digest="0"), _scores()), GatePolicy()
    ).processors == {"candidate": VNNI}


def test_a_decision_written_before_can_still_be_read() -> None:
    decision = decide(
        pair(_scores(processor=None, digest="sha256:0"), _scores(processor=None)), GatePolicy()
    )
    values = decision.model_dump(mode="json")
    del values["processors"]
    assert "portable" not in values["policy"], "the digest of a policy must stay what it was"
    assert Decision.model_validate(values) == decision


def test_models_computed_on_two_kinds_of_processor_are_noted() -> None:
    notes = pair(_scores(digest="sha256:0"), _scores(processor=PLAIN)).notes
    assert len(notes) == 1
    assert "no avx512_vnni" in notes[0]
    assert "part of a difference may be the processors'" in notes[0]
    busy = VNNI.model_copy(update={"threads": 8})
    assert not pair(_scores(digest="sha256:0"), _scores(processor=busy)).notes


# -- portable ------------------------------------------------------------------------------


def _agreements(found: Rerun) -> tuple[Agreement, Agreement]:
    agreements = found.agreements()
    assert agreements is not None
    return agreements


def _agreement(**changes: Any) -> Agreement:
    agreements = _agreements(compare_runs(_scores(), _scores(processor=PLAIN)))
    return agreements[0].model_copy(update=changes)


def test_a_policy_says_so_only_where_it_is_on() -> None:
    assert GatePolicy().digest() == GatePolicy(portable=False).digest() != PORTABLE.digest()
    assert GatePolicy.from_mapping(PORTABLE.model_dump(mode="json")) == PORTABLE


def test_portable_numbers_must_be_shown() -> None:
    assert _decide(_scores(), GatePolicy()).verdict is Verdict.PASS
    decision = _decide(_scores())
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert len(decision.reasons) == 1
    for words in (*ROUNDING, "x86_64 A avx2 avx512_vnni", "mlflow-degrade noise --log"):
        assert words in decision.reasons[0]
    assert "do not say on which" in _decide(_scores(processor=None)).reasons[0]
    assert "are not known" in _decide(_scores(operations=None)).reasons[0]


def test_float32_on_a_cpu_is_portable() -> None:
    assert _decide(_scores(operations=())).verdict is Verdict.PASS


def test_an_agreement_on_other_hardware_is_what_is_needed() -> None:
    assert _decide(_scores(agreements=(_agreement(),))).verdict is Verdict.PASS
    for weak in (
        {"processor": VNNI.model_copy(update={"threads": 9, "onnxruntime": "1.0"})},
        {"verdict": "INCONCLUSIVE"},
        {"verdict": "FAIL"},
        {"alpha": 0.2},
        {"power": 0.5},
        {"margin": 0.021},
    ):
        decision = _decide(_scores(agreements=(_agreement(**weak),)))
        assert decision.verdict is Verdict.INCONCLUSIVE, weak
        assert "1 logged, of which none does" in decision.reasons[0]
    both = (_agreement(verdict="FAIL"), _agreement())
    assert _decide(_scores(agreements=both)).verdict is Verdict.PASS


def test_portable_turns_no_other_verdict() -> None:
    failed = _decide(_scores(60))
    assert failed.verdict is Verdict.FAIL
    assert not any("portable" in reason for reason in failed.reasons)
    small = decide(pair(_scores(digest="sha256:0", n=12), _scores(n=12)), PORTABLE)
    assert small.verdict is Verdict.INCONCLUSIVE
    assert len(small.reasons) == 2, "what is missing besides is said as well"


# -- two runs of one model -----------------------------------------------------------------


def test_the_same_answers() -> None:
    found = compare_runs(_scores(), _scores(processor=PLAIN))
    assert found.verdict is Verdict.PASS
    assert (found.n, found.worse, found.better, found.largest_difference) == (800, 0, 0, 0)
    assert found.p_value == 1
    assert found.notes == ()
    first, second = _agreements(found)
    assert (first.processor, second.processor) == (PLAIN, VNNI)


def test_both_directions_fail_alike() -> None:
    worse = compare_runs(_scores(), _scores(40, processor=PLAIN))
    better = compare_runs(_scores(40), _scores(processor=PLAIN))
    assert worse.verdict is better.verdict is Verdict.FAIL
    assert "is worse than the first: −5.00 pp" in worse.reasons[0]
    assert "is better than the first: 5.00 pp" in better.reasons[0]
    assert worse.p_value == pytest.approx(better.p_value)
    assert (worse.worse, worse.better) == (better.better, better.worse) == (40, 0)
    first, second = _agreements(worse)
    assert (first.worse, first.better, second.worse, second.better) == (40, 0, 0, 40)


def test_the_level_holds_for_both_directions_together() -> None:
    """6 worse and 0 better: one-sided p = 1/64, two-sided 1/32, so FAIL at .05 and not at .03."""
    sides = _scores(), _scores(6, processor=PLAIN)
    pooled = {"aggregation": "pooled"}
    found = compare_runs(*sides, GatePolicy(alpha=0.05, **pooled))
    assert found.p_value == pytest.approx(2 / 64)
    assert found.verdict is Verdict.FAIL
    assert compare_runs(*sides, GatePolicy(alpha=0.03, **pooled)).verdict is Verdict.PASS


def test_flips_that_cancel_out_are_no_systematic_change() -> None:
    found = compare_runs(_scores(5), _scores(5, processor=PLAIN, first=10))
    assert found.verdict is Verdict.PASS
    assert (found.worse, found.better) == (5, 5)


def test_few_samples_cannot_tell() -> None:
    found = compare_runs(_scores(n=20), _scores(n=20, processor=PLAIN))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "too little data" in found.reasons[0]


def test_equivalence_under_the_other_rule() -> None:
    policy = GatePolicy(rule="non_inferiority", margin_pp=2)
    assert "either direction is ruled out" in compare_runs(_scores(), _scores(), policy).reasons[0]


def test_what_is_to_be_known_of_the_runs() -> None:
    with pytest.raises(PairingError, match="two models"):
        compare_runs(_scores(), _scores(digest="sha256:2"))
    assert "one kind" in compare_runs(_scores(), _scores()).notes[0]
    unknown = compare_runs(_scores(processor=None), _scores())
    assert "not known of both" in unknown.notes[0]
    assert unknown.agreements() is None
    assert "two-sided" in unknown.reasons[0]

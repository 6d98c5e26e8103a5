"""Tables that stay in their files: the same pairs, refusals, counts, digests and verdicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from mlflow_degrade import GatePolicy, decide
from mlflow_degrade.cli import run
from mlflow_degrade.core.errors import (
    DegradeError,
    EmptySamplesError,
    InputError,
    NonFiniteScoreError,
    PolicyError,
    SampleSchemaError,
)
from mlflow_degrade.samples import streamed_scores, streaming
from mlflow_degrade.samples.pairing import ALLOWABLE, PairedScores
from mlflow_degrade.samples.readers import parquet_files, read_samples
from mlflow_degrade.samples.readers.parquet_files import parquet_parts
from mlflow_degrade.samples.streamed_scores import StreamedScores

ALLOWED = sorted(set(ALLOWABLE))


@pytest.fixture(autouse=True)
def tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PART_ROWS", 7)
    monkeypatch.setattr(parquet_files, "_BATCH_ROWS", 5)


def streamed(path: Path, **options: Any) -> StreamedScores:
    parts = parquet_parts(path, None, options)
    assert not isinstance(parts, str), parts
    return StreamedScores(parts, str(path))


def outcome(pair: Callable[[], PairedScores], policy: GatePolicy) -> Any:
    """The decision, or the refusal."""
    try:
        return json.loads(decide(pair(), policy).to_json())
    except DegradeError as error:
        return type(error).__name__, str(error)


def both_ways(left: Path, right: Path, policy: GatePolicy) -> tuple[Any, Any]:
    whole = outcome(lambda: policy.pair(read_samples(left), read_samples(right)), policy)
    parts = outcome(lambda: policy.pair(streamed(left), streamed(right)), policy)
    return whole, parts


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.Table, pa.Table]:
    """Two tables that mostly belong together, with everything that can be wrong between them."""
    n = draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tasks = draw(st.sampled_from([("qa",), ("b", "a"), ("b", "a", "a/1")]))
    kind = draw(st.sampled_from(["binary", "binary", "graded"]))
    named = draw(st.booleans())
    repeats = draw(st.sampled_from([1, 1, 1, 2]))
    copies = draw(st.sampled_from([0, 0, 0, 2]))
    # Short ids are ordered by their digits, long ones by a hash.
    ids = [str(i * k) for i, k in enumerate(rng.choice([1, 1, 99_999_989], n).tolist())]
    rows = [
        {
            "task": tasks[i % len(tasks)],
            "doc_id": ids[i],
            "document": i % (n - copies) if n > copies else i,
            "repeat": r,
        }
        for i in range(n)
        for r in range(repeats)
    ]
    clustered, hashed = draw(st.booleans()), draw(st.sampled_from([None, "own", "shared"]))
    answered, prompted = draw(st.booleans()), draw(st.booleans())
    wrong = draw(st.sampled_from([None] * 5 + ["lost", "twice", "prompt", "unscored", "metric"]))
    same = draw(st.sampled_from([False, False, False, True]))
    made = []
    first_scores: list[float] = []
    for side in (0, 1):
        records = []
        for i, row in enumerate(rows):
            score = float(rng.random() < 0.7) if kind == "binary" else float(rng.integers(0, 9)) / 8
            score = first_scores[i] if side and same else score
            first_scores.append(score)
            record = {k: row[k] for k in ("task", "doc_id", "repeat")}
            record |= {"score": score, "metric": "acc", "filter": "none"}
            if wrong == "unscored" and rng.random() < 0.3:
                record["score"] = None
            if wrong == "metric":
                record["metric"] = "acc" if (i + side) % 5 else "f1"
            if hashed == "own":
                record["doc_hash"] = f"{row['task']}-{row['document']}"
            elif hashed == "shared":
                record["doc_hash"] = f"{row['document'] // len(tasks)}"
            if clustered:
                record["cluster"] = None if row["document"] % 5 == 0 else f"c{row['document'] % 4}"
            if answered:
                text = "x" * 40 + str(i if same else rng.integers(0, 5))
                record["response"] = None if rng.random() < 0.01 else f" {text} "
            if prompted:
                record["prompt"] = f"question {row['document']}"
                if wrong == "prompt" and side and rng.random() < 0.3:
                    record["prompt"] += "?"
            if wrong == "lost" and rng.random() < 0.15:
                continue
            records.append(record)
            if wrong == "twice" and rng.random() < 0.15:
                records.append(dict(record))
        rng.shuffle(records)
        made.append(records)
    if not all(made):
        made = [[dict(rows[0], score=1.0, metric="acc")]] * 2
    frames = []
    for records in made:
        names = list(dict.fromkeys(name for record in records for name in record))
        columns = {name: [record.get(name) for record in records] for name in names}
        table = pa.table({**columns, "score": pa.array(columns["score"], pa.float64())})
        if not named and "document" not in table.column_names:
            table = table.rename_columns(
                ["prompt_id" if name == "doc_id" else name for name in table.column_names]
            )
        frames.append(table)
    return frames[0], frames[1]


@settings(
    max_examples=int(os.environ.get("STREAMING_EXAMPLES", "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(tables(), st.lists(st.sampled_from(ALLOWED), max_size=6), st.booleans())
def test_streaming_decides_what_memory_decides(
    tmp_path_factory: pytest.TempPathFactory,
    pair: tuple[pa.Table, pa.Table],
    allow: list[str],
    own: bool,
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    paths = []
    for name, table in zip(("left", "right"), pair, strict=True):
        path = folder / f"{name}.parquet"
        pq.write_table(table, path, row_group_size=9)
        if own:
            with suppress(DegradeError):
                read_samples(path).write_parquet(path)
        paths.append(path)
    policy = GatePolicy(allow=tuple(sorted(set(allow))))
    whole, parts = both_ways(paths[0], paths[1], policy)
    event(parts[0] if isinstance(parts, tuple) else f"decided by {parts['tasks'][0]['test']}")
    assert parts == whole


@pytest.mark.parametrize("what", ["graded", "cluster", "repeat", "document"])
def test_what_one_part_shows_changes_how_all_are_paired(tmp_path: Path, what: str) -> None:
    n, rng = 40, np.random.default_rng(0)
    for place in range(0, n, 13):
        rows = [{"task": "ab"[i % 2], "doc_id": str(i), "metric": "acc"} for i in range(n)]
        for i, row in enumerate(rows):
            row["doc_hash"] = f"hash-{i}"
        other = rows[place - 1]
        if what == "cluster":
            rows[place]["cluster"] = other["cluster"] = "c"
        elif what == "document":
            rows[place]["doc_hash"] = other["doc_hash"]
        elif what == "repeat":
            rows.append({**rows[place], "repeat": 1})
        paths = []
        for side in "lr":
            for row in rows:
                row["score"] = float(rng.random() < 0.7)
            if what == "graded":
                rows[place]["score"] = 0.5
            path = tmp_path / f"{side}.parquet"
            pq.write_table(pa.Table.from_pylist([dict.fromkeys(rows[-1]) | r for r in rows]), path)
            paths.append(path)
        whole, parts = both_ways(paths[0], paths[1], GatePolicy())
        assert isinstance(whole, dict), whole
        # Sums over tasks that are counted and tasks that are not are formed in another order.
        assert rounded(parts) == rounded(whole)


def rounded(found: Any) -> Any:
    """The same with numbers to 12 digits."""
    return json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.12g}"))


def write(path: Path, scores: list[float | None], **columns: Any) -> Path:
    ids = [str(i) for i in range(len(scores))]
    given = {"task": ["qa"] * len(scores), "prompt_id": ids, **columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**given, "score": pa.array(scores, pa.float64())}), path)
    return path


def test_rows_to_look_at_come_from_the_files(tmp_path: Path) -> None:
    texts = {"prompt": [f"q{i}" for i in range(30)], "response": [str(i) for i in range(30)]}
    left = write(tmp_path / "a.parquet", [1.0] * 30, **texts)
    right = write(tmp_path / "b.parquet", [0.0] * 7 + [1.0] * 23, **texts)
    pairs = GatePolicy().pair(streamed(left), streamed(right))
    memory = GatePolicy().pair(read_samples(left), read_samples(right))
    task = pairs.tasks[0]
    assert task.baseline.dtype == np.int8
    found = pairs.items("qa", task.worst(5))
    assert found.to_dict("records") == memory.items("qa", np.arange(5)).to_dict("records")


def test_parts_are_removed_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    left, right = (write(tmp_path / f"{n}.parquet", [1.0, 0.0] * 20) for n in "ab")
    sides = streamed(left), streamed(right)
    GatePolicy().pair(*sides)
    assert not list(scratch.iterdir())

    def interrupted(*_: object, **__: object) -> None:
        assert list(scratch.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming._Pairing, "_pair_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        GatePolicy().pair(*sides)
    assert not list(scratch.iterdir())


class TestBadInput:
    def test_truncated(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.parquet", [1.0] * 50)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(SampleSchemaError, match=r"a\.parquet cannot be read"):
            streamed(path)

    def test_broken_in_the_middle(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.parquet", np.random.default_rng(0).random(20_000).tolist())
        content = bytearray(path.read_bytes())
        content[2_000:90_000] = os.urandom(88_000)
        path.write_bytes(content)
        with pytest.raises(SampleSchemaError, match=r"a\.parquet cannot be read"):
            streamed(path)

    def test_a_column_that_one_side_lacks(self, tmp_path: Path) -> None:
        left = write(tmp_path / "a.parquet", [1.0, 0.0], filter=["strict"] * 2)
        right = write(tmp_path / "b.parquet", [1.0, 0.0])
        whole, parts = both_ways(left, right, GatePolicy())
        assert parts == whole
        assert parts[0] == "MetricMismatchError"

    def test_files_of_one_folder_that_do_not_fit(self, tmp_path: Path) -> None:
        write(tmp_path / "all" / "a.parquet", [1.0, 0.0])
        pq.write_table(
            pa.table({"prompt_id": ["7"], "score": ["high"]}), tmp_path / "all" / "b.parquet"
        )
        with pytest.raises(SampleSchemaError) as refused:
            streamed(tmp_path / "all")
        with pytest.raises(SampleSchemaError) as whole:
            read_samples(tmp_path / "all")
        assert str(refused.value) == str(whole.value)

    def test_files_of_two_models(self, tmp_path: Path) -> None:
        for name in "ab":
            scores = read_samples(write(tmp_path / f"{name}.parquet", [1.0, 0.0]))
            scores.with_digest(name).write_parquet(tmp_path / "all" / f"{name}.parquet")
        with pytest.raises(SampleSchemaError, match="different models cannot be stacked"):
            streamed(tmp_path / "all")

    @pytest.mark.parametrize(
        ("scores", "error"),
        [([float("nan"), 1.0, 1.0], NonFiniteScoreError), ([None] * 8, EmptySamplesError)],
    )
    def test_scores_that_are_none(
        self, tmp_path: Path, scores: list[float | None], error: type[DegradeError]
    ) -> None:
        path = write(tmp_path / "a.parquet", scores)
        with pytest.raises(error) as whole:
            read_samples(path)
        with pytest.raises(error) as parts:
            streamed(path)
        assert str(parts.value) == str(whole.value)

    def test_no_room_for_the_items(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streaming, "_GRADED_BYTES", 10**15)
        left, right = (write(tmp_path / f"{n}.parquet", [0.5, 0.25]) for n in "ab")
        with pytest.raises(InputError, match="not just right or wrong"):
            GatePolicy().pair(streamed(left), streamed(right))

    def test_a_policy_that_needs_all_samples(self, tmp_path: Path) -> None:
        left, right = (write(tmp_path / f"{n}.parquet", [1.0, 0.0]) for n in "ab")
        stops = GatePolicy.from_mapping({"rule": "non_inferiority", "sequential": {}}, "test")
        with pytest.raises(InputError, match="--no-stream"):
            stops.pair(streamed(left), streamed(right))
        judged = GatePolicy.from_mapping({"judge": {"metric": "a", "gold": "b"}}, "test")
        with pytest.raises(PolicyError, match="--no-stream"):
            judged.pair(streamed(left), streamed(right))
        with pytest.raises(InputError, match="one side is in memory"):
            GatePolicy().pair(streamed(left), read_samples(right))

    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({"model": ["x", "y"]}, "'model'"),
            ({"unscored": [0, 1]}, "'unscored'"),
            ({"turn": [1, 2]}, "'turn'"),
        ],
    )
    def test_what_only_all_rows_can_tell(
        self, tmp_path: Path, columns: dict[str, list[Any]], reason: str
    ) -> None:
        found = parquet_parts(write(tmp_path / "a.parquet", [1.0, 0.0], **columns), None, {})
        assert isinstance(found, str)
        assert reason in found


class TestCommand:
    @pytest.fixture
    def sides(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        monkeypatch.chdir(tmp_path)
        texts = {"prompt": [f"<q{i}>" for i in range(60)], "length": list(range(60))}
        write(tmp_path / "fp32.parquet", [1.0] * 60, **texts)
        write(tmp_path / "int8.parquet", [0.0] * 9 + [1.0] * 51, **texts)
        return ["fp32.parquet", "int8.parquet"]

    def test_the_same_decision_and_a_report(
        self, sides: list[str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        for way in ("--stream", "--no-stream"):
            assert run(["compare", *sides, way, "--json", f"{way[2:]}.json"]) == 1
            said = capfd.readouterr()
            assert ("60 and 60 rows stay in their files" in said.err) is (way == "--stream")
            assert "<q0>" in said.out
        assert Path("stream.json").read_bytes() == Path("no-stream.json").read_bytes()
        assert run(["compare", *sides, "--stream", "--report", "report.html"]) == 1
        assert "&lt;q0&gt;" in Path("report.html").read_text(encoding="utf-8")

    def test_a_file_that_is_not_there(
        self, sides: list[str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["compare", sides[0], "other.parquet", "--stream"]) == 3
        assert "other.parquet does not exist" in capfd.readouterr().err

    def test_where_memory_is_short(
        self,
        sides: list[str],
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        assert run(["compare", *sides]) == 1
        assert "stay in their files" not in capfd.readouterr().err
        monkeypatch.setattr(streamed_scores, "_SHARE_OF_MEMORY", 0.0)
        assert run(["compare", *sides]) == 1
        assert "stay in their files" in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--by", "length"], "--by needs all samples in memory"),
            (["--rerun", "fp32.parquet"], "--rerun needs all samples in memory"),
            (["--average", "rater"], "--stream: the option average needs all rows"),
            (["-o", "nonsense=1"], "nonsense"),
        ],
    )
    def test_what_is_refused(
        self, sides: list[str], capfd: pytest.CaptureFixture[str], more: list[str], said: str
    ) -> None:
        assert run(["compare", *sides, "--stream", *more]) == 3
        assert said in capfd.readouterr().err

    def test_what_is_no_parquet(self, sides: list[str], capfd: pytest.CaptureFixture[str]) -> None:
        Path("a.csv").write_text("prompt_id,score\n1,1\n", encoding="utf-8")
        assert run(["compare", "a.csv", sides[1], "--stream"]) == 3
        assert "a.csv is not Parquet alone" in capfd.readouterr().err


_LARGE = r"""
import re, sys
from pathlib import Path
from mlflow_degrade.cli import main
sys.argv = ["mlflow-degrade", "compare", *sys.argv[1:]]
try:
    main()
finally:
    # Of this program alone: getrusage begins with what the process that started it had.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(peak[1], file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_ten_million_rows_a_side_within_two_gibibytes(tmp_path: Path) -> None:
    n, step = 10**7, 10**6
    rng, lost, gained = np.random.default_rng(1), 0, 0
    writers: dict[str, pq.ParquetWriter] = {}
    for start in range(0, n, step):
        before = rng.random(step) < 0.7
        after = before ^ (rng.random(step) < 0.01)
        lost, gained = lost + int((before & ~after).sum()), gained + int((after & ~before).sum())
        for name, right in (("a", before), ("b", after)):
            order = rng.permutation(step)
            table = pa.table(
                {
                    "task": pa.repeat(f"t{4 * start // n}", step),
                    "prompt_id": (start + np.arange(step))[order],
                    "score": right.astype(np.int8)[order],
                }
            )
            if name not in writers:
                writers[name] = pq.ParquetWriter(tmp_path / f"{name}.parquet", table.schema)
            writers[name].write_table(table)
    for writer in writers.values():
        writer.close()
    found = tmp_path / "decision.json"
    done = subprocess.run(
        [sys.executable, "-c", _LARGE, str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"),
         "--stream", "--json", str(found)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    decision = json.loads(found.read_text(encoding="utf-8"))
    total = decision["aggregate"]
    assert (total["n"], total["regressions"], total["improvements"]) == (n, lost, gained)
    assert int(done.stderr.split()[-1]) * 1024 < 2 * 2**30

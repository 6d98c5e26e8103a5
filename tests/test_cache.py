"""A cached directory is complete or absent."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from mlflow_degrade import SampleScores
from mlflow_degrade.core import cache
from mlflow_degrade.core.cache import cached_directory, digest_directory, require_space
from mlflow_degrade.core.errors import StorageError
from mlflow_degrade.evaluation.lm_eval_task import Journal
from mlflow_degrade.evaluation.model_evaluation import Entry
from mlflow_degrade.optimize.source.weight_files import damage


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))


def test_made_once() -> None:
    calls = []

    def make(where: Path) -> None:
        calls.append(where)
        (where / "a").write_text("x")

    first = cached_directory("kind", {"k": 1}, make)
    assert cached_directory("kind", {"k": 1}, make) == first
    assert len(calls) == 1
    assert (first / "a").read_text() == "x"
    assert cached_directory("kind", {"k": 2}, make) != first


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_interrupted_work_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def make(where: Path) -> None:
        (where / "half").write_text("x")
        raise error

    with pytest.raises(type(error)):
        cached_directory("kind", "k", make)
    assert list((tmp_path / "cache" / "kind").iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_a_living_one_is_let_alone(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, time\n"
        "from mlflow_degrade.core.cache import cached_directory\n"
        "def make(where):\n"
        "    (where / 'half').write_text('x')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "cached_directory('kind', 'k', make)\n"
    )
    kind = tmp_path / "cache" / "kind"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        (theirs,) = kind.iterdir()
        cached_directory("kind", "other", lambda where: (where / "a").touch())
        with pytest.raises(RuntimeError):
            cached_directory("kind", "k", _boom)
        assert (theirs / "half").exists()
        child.kill()
    assert (theirs / "half").exists()
    made = cached_directory("kind", "k", lambda where: (where / "whole").touch())
    assert (made / "whole").exists()
    assert not theirs.exists()


def _boom(_where: Path) -> None:
    raise RuntimeError("boom")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_explained(tmp_path: Path, number: int) -> None:
    def make(_where: Path) -> None:
        raise OSError(number, "No space left on device")

    with pytest.raises(StorageError, match="MLFLOW_DEGRADE_CACHE"):
        cached_directory("kind", "k", make)
    with pytest.raises(StorageError, match="GB are free"):
        require_space(tmp_path / "not" / "there", 10**18, "an export")


def test_lost_race_uses_the_winner(tmp_path: Path) -> None:
    def make(where: Path) -> None:
        (where / "a").write_text("mine")
        # Another process finishes first.
        final = tmp_path / "cache" / "kind" / where.name.split(".")[1]
        final.mkdir()
        (final / "a").write_text("theirs")

    assert (cached_directory("kind", "k", make) / "a").read_text() == "theirs"


def test_digest_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("1")
    before = digest_directory(tmp_path / "d")
    (tmp_path / "d" / "manifest.json").write_text("{}")
    assert digest_directory(tmp_path / "d", ignore=("manifest.json",)) == before
    (tmp_path / "d" / "a").write_text("2")
    assert digest_directory(tmp_path / "d", ignore=("manifest.json",)) != before
    (tmp_path / "d" / "a").write_text("1")
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "b")
    assert digest_directory(tmp_path / "d", ignore=("manifest.json",)) != before


@pytest.mark.parametrize("harm", [lambda f: f.write_bytes(b"12"), lambda f: f.unlink()])
def test_what_lost_files_is_made_again(harm: Callable[[Path], object]) -> None:
    calls = []

    def make(where: Path) -> None:
        calls.append(where)
        (where / "sub").mkdir()
        (where / "sub" / "weights").write_bytes(b"1234")

    made = cached_directory("kind", "k", make)
    harm(made / "sub" / "weights")
    assert cached_directory("kind", "k", make) == made
    assert (made / "sub" / "weights").read_bytes() == b"1234"
    assert len(calls) == 2
    assert cached_directory("kind", "k", make) == made
    (made.parent / f"{made.name}.sizes").unlink()  # as an earlier version left it
    assert cached_directory("kind", "k", make) == made
    assert len(calls) == 2
    assert len(list(made.parent.iterdir())) == 1


def test_what_another_process_made_again_is_kept() -> None:
    made = cached_directory("kind", "k", lambda where: (where / "a").write_text("x"))
    cache._discard(made)
    assert (made / "a").read_text() == "x"


def test_a_cache_that_cannot_be_written_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(StorageError, match=r"cannot be written .*MLFLOW_DEGRADE_CACHE"):
        cached_directory("kind", "k", _boom)
    with pytest.raises(StorageError, match=r"cannot be written .*MLFLOW_DEGRADE_CACHE"):
        Entry("kind", {"k": 1}).finish({"a": 1})
    with pytest.raises(StorageError, match=r"cannot be written .*MLFLOW_DEGRADE_CACHE"):
        Journal(Entry("kind", {"k": 1}).journal).__enter__()


@pytest.mark.parametrize("name", ["facts.json", "samples.parquet"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_an_evaluation_that_was_cut_off_is_not_finished(name: str, share: float) -> None:
    frame = pd.DataFrame({"task": "t", "doc_id": [0, 1], "metric": "acc", "score": [0.0, 1.0]})
    entry = Entry("evaluation", {"k": 1})
    entry.finish({"a": 1}, SampleScores.from_pandas(frame, model="m"))
    assert (entry.facts() or {})["a"] == 1
    file = entry.folder / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert entry.facts() is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
@pytest.mark.parametrize("buffering", [1, -1])
def test_a_journal_on_a_full_disk_is_explained(tmp_path: Path, buffering: int) -> None:
    with pytest.raises(StorageError, match="no space left"):
        _write_to_a_full_disk(Journal(tmp_path / "journal.jsonl"), buffering)


def _write_to_a_full_disk(journal: Journal, buffering: int) -> None:
    with Path("/dev/full").open("w", encoding="utf-8", buffering=buffering) as full, journal:
        journal._stream = full
        journal.add_partial("loglikelihood", ("1 + 1 =", " 2"), (-0.5, True))


def test_weights_that_only_another_user_reads_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))  # root reads all

    monkeypatch.setattr(Path, "open", refuse)
    assert "may not be read by this user" in str(damage(file))

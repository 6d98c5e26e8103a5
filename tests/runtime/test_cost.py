"""Cost is measured for every model alike, in rounds that run all of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_models import TinyModel
from engine_models import ModelDir

from mlflow_degrade.bench import cost
from mlflow_degrade.bench.cost import measure_cost
from mlflow_degrade.bench.memory import MemoryUse
from mlflow_degrade.bench.results import (
    MIN_ROUNDS,
    BenchmarkReport,
    ModelCost,
    ModelWork,
    PhaseTimes,
    Shape,
)
from mlflow_degrade.core.errors import InputError, SameModelError
from mlflow_degrade.engine.encoder import OnnxEncoder
from mlflow_degrade.engine.schedule import Batch, Row


@pytest.fixture(scope="module")
def report(model_dir: ModelDir) -> BenchmarkReport:
    folders = {"baseline": model_dir("fp32"), "candidate": model_dir("int8-weight-only")}
    return measure_cost(folders, device="cpu", seconds=0)


def test_all_models_are_measured_alike(report: BenchmarkReport) -> None:
    found = {model.label: model.figures(named_shapes=False) for model in report.models}
    assert list(found) == ["baseline", "candidate"]
    assert found["baseline"].keys() == found["candidate"].keys()
    for model in report.models:
        figures = found[model.label]
        size = sum(f.stat().st_size for f in model.folder.glob("model.onnx*"))
        assert figures["size/bytes"] == (size, "bytes")
        for name in ("first_token", "next_token"):
            p50, p90, p99 = (figures[f"latency/{name}_ms_p{p}"][0] for p in (50, 90, 99))
            assert 0 < p50 <= p90 <= p99
        assert figures["throughput/decode_tokens_per_second"][0] > 0
        # Reading a prompt at once is what makes prefill cheaper per token than decoding.
        assert (
            figures["throughput/prefill_tokens_per_second"][0]
            > figures["throughput/decode_tokens_per_second"][0]
        )


def test_a_candidate_is_related_to_the_baseline(report: BenchmarkReport) -> None:
    assert report.rounds == MIN_ROUNDS
    metrics = report.ratio_metrics("candidate", named_shapes=False)
    sizes = [model.size_bytes for model in report.models]
    assert metrics["size/compression_ratio"] == sizes[0] / sizes[1]
    for phase in ("prefill", "decode"):
        low, middle, high = (
            metrics[f"speed_ratio/{phase}{end}"] for end in ("_ci_low", "", "_ci_high")
        )
        assert 0 < low <= middle <= high
        (base, times) = (m.of(phase, report.shapes[0]) for m in report.models)
        assert base is not None
        assert times is not None
        assert middle == pytest.approx(np.median(np.divide(base.rounds, times.rounds)))


def test_the_rounds_are_evidence(report: BenchmarkReport) -> None:
    found = report.evidence("candidate", {"baseline": "sha256:a", "candidate": "sha256:b"})
    assert (found.baseline_digest, found.candidate_digest) == ("sha256:a", "sha256:b")
    assert [phase.phase for phase in found.phases] == ["prefill", "decode"]
    for phase in found.phases:
        for side, model in zip((phase.baseline, phase.candidate), report.models, strict=True):
            times = model.of(phase.phase, report.shapes[0])
            assert times is not None
            assert side == times.rounds
    assert found.size_bytes.baseline == (report.baseline.size_bytes,)
    assert found.memory_bytes is not None
    assert found.memory_bytes.candidate == (report.models[1].memory.total_bytes,)
    assert report.as_dict()["evidence"][0]["phases"][0]["length"] == report.shapes[0].length


def test_energy_is_added_up_round_by_round() -> None:
    shape = Shape(1, 8, 2)

    def model(label: str, factor: float) -> ModelCost:
        times = tuple(
            PhaseTimes(phase, shape, (1.0, 1.0), (1.0, 1.0), {}, (factor * 1.0, factor * 2.0))
            for phase in ("prefill", "decode")
        )
        return ModelCost(label, Path(), 1, MemoryUse(1, 1), ModelWork(1, 1, 1, 1), times, ())

    report = BenchmarkReport(
        (model("a", 1.0), model("b", 0.5)), (shape,), "cpu", "test", 1, 2, 0, None, ("x",), ()
    )
    found = report.evidence("b", {})
    assert found.joules is not None
    assert (found.joules.baseline, found.joules.candidate) == ((2.0, 4.0), (1.0, 2.0))
    assert found.memory_bytes is None


def test_as_many_rounds_and_processes_as_are_asked_for(model_dir: ModelDir) -> None:
    report = measure_cost(
        {"a": model_dir("fp32")}, lengths=(8,), device="cpu", seconds=0, min_rounds=9, processes=2
    )
    assert report.rounds == 9
    assert len(report.baseline.memory_runs) == 2


def test_the_second_half_is_warmed_up_the_other_way_round(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = cost.open_workload

    def noted(folder: Path, **options: Any) -> Any:
        opened.append(folder.name)
        return original(folder, **options)

    monkeypatch.setattr(cost, "open_workload", noted)
    folders = {"a": model_dir("fp32"), "b": model_dir("int8-weight-only")}
    names = [folder.name for folder in folders.values()]
    options: dict[str, Any] = {"lengths": (8,), "new_tokens": 2, "device": "cpu", "seconds": 0}
    report = measure_cost(folders, **options, min_rounds=10)
    assert opened == [*names, *reversed(names)]
    assert [len(times.rounds) for times in report.models[0].times] == [10, 10]
    opened.clear()
    measure_cost(folders, **options)
    assert opened == names, "without a goal nothing is opened twice"


def test_shapes_are_measured_each(model_dir: ModelDir) -> None:
    told: list[tuple[int, int]] = []
    report = measure_cost(
        {"a": model_dir("fp32"), "b": model_dir("int4-weight-only")},
        batch_sizes=(2, 1),
        lengths=(8, 32, 8),
        new_tokens=3,
        device="cpu",
        threads=1,
        seconds=0,
        roofline=True,
        on_progress=lambda more, done: told.append((more, done)),
    )
    assert [(s.batch_size, s.length) for s in report.shapes] == [(1, 8), (1, 32), (2, 8), (2, 32)]
    for model in report.models:
        assert len(model.times) == 2 * len(report.shapes)
        for times in model.times:
            assert len(times.rounds) == report.rounds
            assert len(times.calls) == report.rounds * (3 if times.phase == "decode" else 1)
            assert sum(times.calls) == pytest.approx(sum(times.rounds))
            share = report.utilization(model, times)
            assert share is not None
            assert 0 < share < 2
    assert len(report.ratios()) == 8
    assert "latency/batch2_length32/next_token_ms_p99" in report.models[1].figures()
    # The bar ends full.
    assert sum(more for more, _ in told) == sum(done for _, done in told)


def test_rounds_go_on_until_the_time_is_over(model_dir: ModelDir) -> None:
    report = measure_cost(
        {"a": model_dir("fp32")}, lengths=(8,), new_tokens=1, device="cpu", seconds=0.5
    )
    assert report.rounds > MIN_ROUNDS
    assert report.ratios() == []
    assert report.as_dict()["roof"] is None


def test_an_export_without_a_cache_has_no_decode(tiny_source: Path, tmp_path: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(
        str(tiny_source), tmp_path, task="text-generation", do_validation=False, device="cpu"
    )
    report = measure_cost({"a": tmp_path}, lengths=(8,), device="cpu", seconds=0)
    (model,) = report.models
    assert [times.phase for times in model.times] == ["prefill"]
    assert "decode: the export has no cache" in model.not_measured


def test_encoders_and_classifiers_read_texts(
    tiny_encoder: TinyModel, tiny_classifier: TinyModel
) -> None:
    report = measure_cost(
        {"vectors": tiny_encoder.made("fp32"), "labels": tiny_classifier.made("fp32")},
        batch_sizes=(1, 12),
        # The whole context: nothing is generated, whatever `new_tokens` says.
        lengths=(64,),
        device="cpu",
        seconds=0,
    )
    assert [(s.batch_size, s.new_tokens) for s in report.shapes] == [(1, 0), (12, 0)]
    for model in report.models:
        assert [times.phase for times in model.times] == ["encode", "encode"]
        assert model.not_measured == ("device memory: no CUDA device is used",)
        assert model.memory.loaded_bytes
        for times in model.times:
            texts = times.shape.batch_size
            assert len(times.calls) == report.rounds
            assert times.tokens == 64 * texts
            each = 64 * model.work.body_parameters + model.work.head_parameters
            assert times.work(model.work).flops == 2 * texts * each
    assert [bool(model.work.head_parameters) for model in report.models] == [False, True]
    assert "latency/batch12_length64/text_ms_p90" in report.models[0].figures()
    assert report.ratio_metrics("labels")["speed_ratio/batch12_length64/encode_ci_low"] > 0


def test_a_batch_of_texts_is_one_call(
    tiny_encoder: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, int]] = []
    run_batch = OnnxEncoder.run_batch

    def watched(self: OnnxEncoder, rows: list[Row], batch: Batch) -> object:
        ran.append((len(batch.rows), batch.length))
        return run_batch(self, rows, batch)

    monkeypatch.setattr(OnnxEncoder, "run_batch", watched)
    report = measure_cost(
        {"a": tiny_encoder.made("fp32")}, batch_sizes=(50,), lengths=(63,), device="cpu", seconds=0
    )
    # More texts than the sample sentence has tokens, so that some are equal; and the first run.
    assert ran == [(50, 63)] * (report.rounds + 1)


class TestRefused:
    def test_a_decoder_beside_an_encoder(
        self, model_dir: ModelDir, tiny_encoder: TinyModel
    ) -> None:
        with pytest.raises(InputError, match="a is a decoder and b is an encoder"):
            measure_cost({"a": model_dir("fp32"), "b": tiny_encoder.made("fp32")})

    def test_texts_beyond_what_the_encoder_takes(self, tiny_encoder: TinyModel) -> None:
        with pytest.raises(InputError, match=r"65 tokens do not fit .* 64 tokens: .* up to 64\."):
            measure_cost({"a": tiny_encoder.made("fp32")}, lengths=(65,), device="cpu")

    def test_no_model(self) -> None:
        with pytest.raises(InputError, match="no model"):
            measure_cost({})

    def test_one_directory_twice(self, model_dir: ModelDir, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(model_dir("fp32"))
        with pytest.raises(SameModelError, match="a and b are the same directory"):
            measure_cost({"a": model_dir("fp32"), "b": link})

    def test_prompts_beyond_the_context(self, model_dir: ModelDir) -> None:
        with pytest.raises(InputError, match=r"256 tokens: use lengths up to 240"):
            measure_cost({"a": model_dir("fp32")}, lengths=(241,), new_tokens=16, device="cpu")

    @pytest.mark.parametrize(
        "wrong",
        [{"batch_sizes": (0,)}, {"lengths": ()}, {"new_tokens": 0}, {"seconds": float("nan")}],
    )
    def test_sizes_without_sense(self, wrong: dict[str, object], model_dir: ModelDir) -> None:
        with pytest.raises(InputError):
            measure_cost({"a": model_dir("fp32")}, **wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_copy_is_as_fast(model_dir: ModelDir, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_dir("fp32"), copy)
    # Where its weights come to lie makes one opened model a little faster than another for as long
    # as both are open; that is real within a measurement, and no property of the files.
    reports = [
        measure_cost(
            {"a": model_dir("fp32"), "b": copy}, lengths=(64,), device="cpu", seconds=5, seed=seed
        )
        for seed in range(5)
    ]
    for phase in ("prefill", "decode"):
        found = [r.ratio for report in reports for r in report.ratios() if r.phase == phase]
        assert len(found) == len(reports)
        # Exact intervals at 95% miss in one of ten runs each; the median of five hardly ever.
        assert np.median([ratio.low for ratio in found]) <= 1.05
        assert np.median([ratio.high for ratio in found]) >= 0.95

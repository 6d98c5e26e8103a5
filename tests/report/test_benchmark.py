"""A benchmark as tables and as a figure."""

from __future__ import annotations

import re
from io import StringIO

import benchmark_cases as cases
from rich.console import Console

from mlflow_degrade.bench.results import BenchmarkReport
from mlflow_degrade.report.bench import benchmark_figure, benchmark_view


def shown(report: BenchmarkReport, width: int = 120) -> str:
    text = StringIO()
    Console(file=text, width=width).print(benchmark_view(report))
    return text.getvalue()


FP32, INT8 = cases.model("fp32", 2.0, 500_000_000), cases.model("int8", 1.0, 250_000_000)


def test_tables_have_every_figure() -> None:
    text = shown(cases.report(FP32, INT8))
    assert re.search(r"int8 +250 MB +2\.00× +250 MB +25\.0 MB", text)
    # 128 tokens a second; 2 · (1e8 · 128 + 2.8e7) operations at 1e11 a second, in one second.
    row = r"int8 +1 +128 +1,000 +1,125 +1,238 +128 +26% +2\.00× \[2\.00, 2\.00\]"
    assert re.search(row, text)
    # Decode: 2 tokens, 500 ms each.
    assert re.search(r"int8 +1 +128 +500 +\S+ +\S+ +2\.00 ", text)
    assert "20.0 GB/s read and 100 GFLOP/s" in text
    assert "J/token" not in text
    assert text.count("not measured: device memory: no CUDA device is used\n") == 1


def test_energy_has_a_column_where_it_was_read() -> None:
    models = [cases.model(name, 1.0, 10**8, energy=True) for name in ("a", "b")]
    text = shown(cases.report(*models, energy=True), width=140)
    # "decode" has two e's: 12 J over 6 rounds of 2 tokens.
    assert re.search(r"a +1 +128 +500 .* 1\.00 +", text)
    assert "Energy of whole processors and GPUs, by rapl package-0." in text
    assert "energy/batch1_length128/decode_rapl_package-0_joules_per_token" in models[0].figures()


def test_what_one_model_lacks_is_said_of_that_one() -> None:
    text = shown(cases.report(FP32, cases.model("bare", 1.0, 10**8, cache=False)))
    assert "not measured: decode: the export has no cache (bare)" in text
    decode = text.partition("Decode:")[2]
    assert not re.search(r"^bare", decode, re.MULTILINE)


def test_one_model_alone_has_no_ratios() -> None:
    text = shown(cases.report(FP32))
    assert "baseline" not in text


def test_the_figure_has_a_bar_for_every_measurement() -> None:
    bare = cases.model("$\\frac{1$", 1.0, 10**8, cache=False)
    figure = benchmark_figure(cases.report(FP32, INT8, bare))
    figure.draw_without_rendering()
    prefill, decode = figure.axes
    assert len(prefill.patches) == 3 * len(cases.SHAPES)
    assert len(decode.patches) == 2 * len(cases.SHAPES)
    assert "128   2.00× [2.00, 2.00]" in [text.get_text() for text in prefill.texts]
    larger = benchmark_figure(cases.report(*(cases.model(f"{i}", 1.0, 10**8) for i in range(9))))
    assert larger.get_size_inches()[1] > 1.5 * figure.get_size_inches()[1]

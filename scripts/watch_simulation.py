"""Measure a watch: false alarms of a year, and traces until a swapped model is seen.

    python scripts/watch_simulation.py make served.json              # the starter model; minutes
    python scripts/watch_simulation.py judge served.json --write docs/watch.md

`make` lets schemes of the starter model write answers to its suite's questions and reads each
token by token with all of them. `judge` draws years of traces from that, with replacement. Both
are seeded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from markdown_tables import markdown, replace_between_markers

from mlflow_degrade.decision.watch import WEEKS, WatchPolicy, first_alarms

CHAMPION, CHALLENGER = "fp32", "int4-weight-only"
SERVED = ("fp32", "int8-weight-only", "int4-weight-only")
NEW_TOKENS = 16
PER_WEEK = 25
SWAPS = 100
Numbers = np.ndarray


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--limit", default=10, show_default=True, help="Questions of each task.")
def make(output: Path, limit: int) -> None:
    """Let each scheme write, and read what it wrote with all of them."""
    from mlflow_degrade.engine.decoder import OnnxDecoder
    from mlflow_degrade.engine.generation import Sampling
    from mlflow_degrade.evaluation.backend import OnnxLM
    from mlflow_degrade.evaluation.lm_eval_task import _asked
    from mlflow_degrade.evaluation.suite import load_suite
    from mlflow_degrade.evaluation.teacher_forcing import encoded, token_scores
    from mlflow_degrade.optimize.export import export_onnx
    from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
    from mlflow_degrade.optimize.schemes import apply_scheme
    from mlflow_degrade.optimize.source.resolve import resolve_model

    base = optimize_graph(export_onnx(resolve_model("starter")))
    folders = {s: base if s == "fp32" else apply_scheme(base, s) for s in SERVED}
    decoders = {s: OnnxDecoder(folder, device="cpu") for s, folder in folders.items()}
    suite = load_suite(["starter"], limit=limit, seed=0)
    reader = OnnxLM(decoders[CHAMPION], path="batched")
    prompts = [
        str(arguments[0])
        for task in suite.tasks
        for arguments in _asked(reader, task, len(task.indices), seed=0, prompting=suite.prompting)
    ]
    prompts = list(dict.fromkeys(prompts))
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for scheme, decoder in decoders.items():
        ids = decoder.encoder.encode(prompts)
        texts = decoder.generate(ids, Sampling(max_new_tokens=NEW_TOKENS))
        click.echo(f"{scheme} wrote {len(texts)} texts", err=True)
        decoder.close()
        for by, other in decoders.items():
            pairs = encoded(other, list(zip(prompts, texts, strict=True)), NEW_TOKENS)
            kept = [pair for pair in pairs if pair is not None]
            scores = token_scores(other, kept)
            other.close()
            found.setdefault(scheme, []).append(
                [{"by": by, "best": [s.is_greedy for s in one],
                  "loglik": [s.logprob for s in one]} for one in scores]
            )  # fmt: skip
            click.echo(f"{scheme} read by {by}: {len(scores)} texts", err=True)
    output.write_text(json.dumps(found))


def _counts(read: list[list[dict[str, Any]]]) -> dict[str, Numbers]:
    """Of each text its tokens, those that differ, and those that speak for either model."""
    by = {one[0]["by"]: one for one in read}
    rows = []
    for champion, challenger in zip(by[CHAMPION], by[CHALLENGER], strict=True):
        a, b = np.array(champion["best"]), np.array(challenger["best"])
        rows.append((a.size, (~a).sum(), (b & ~a).sum(), (a & ~b).sum()))
    columns = np.array(rows).T
    return dict(zip(("tokens", "differing", "against", "agreeing"), columns, strict=True))


@main.command()
@click.argument("served", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--years", default=1000, show_default=True)
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path))
def judge(served: Path, years: int, write: Path | None) -> None:
    """Draw years, and swaps in them."""
    texts = {name: _counts(read) for name, read in json.loads(served.read_text()).items()}
    for name, make_table in (
        ("read", lambda: _read_table(texts)),
        ("swaps", lambda: _swaps(texts)),
        ("alarms", lambda: _alarms(texts, years)),
    ):
        table = make_table()
        click.echo(f"\n{name}\n{table}")
        if write is not None:
            write.write_text(replace_between_markers(write.read_text(), {name: table}))


def _read_table(texts: dict[str, dict[str, Numbers]]) -> str:
    rows = [
        [
            name,
            f"{one['tokens'].size:,}",
            f"{one['tokens'].sum():,}",
            f"{np.mean(one['differing'] / one['tokens']):.2%}",
            f"{one['against'].sum():,} / {one['agreeing'].sum():,}",
        ]
        for name, one in texts.items()
    ]
    head = ["served by", "texts", "tokens", "differ from the champion's", "against / for it"]
    return markdown(head, rows, f"Champion {CHAMPION}, challenger {CHALLENGER}; greedy answers.")


def _year(rng: Any, one: dict[str, Numbers], years: int, per_week: int) -> dict[str, Numbers]:
    drawn = rng.integers(0, one["tokens"].size, (years, WEEKS * per_week))
    return {name: values[drawn] for name, values in one.items()}


def _alarms(texts: dict[str, dict[str, Numbers]], years: int) -> str:
    """How often a year has a false alarm, on real texts and at the edge of each hypothesis."""
    rng, good, other = np.random.default_rng(0), texts[CHAMPION], texts["int8-weight-only"]
    edge = float(np.mean(other["differing"] / other["tokens"]))
    calm = WatchPolicy()
    tolerant = WatchPolicy(tolerance=edge)
    cases = []
    year = _year(rng, good, years, PER_WEEK)
    cases.append(("its own texts", calm, year, True))
    cases.append((f"its own texts, tolerance {edge:.3f}", tolerant, year, True))
    year = _year(rng, other, years, PER_WEEK)
    cases.append((f"edge of the tolerance: int8, mean {edge:.3f}", tolerant, year, False))
    year = _year(rng, good, years, PER_WEEK)
    flips = year["against"] + year["agreeing"]
    year["against"] = rng.binomial(flips, 0.5)
    year["agreeing"] = flips - year["against"]
    cases.append(("edge of the swap: each such token either way", calm, year, True))
    rows = []
    for name, policy, drawn, challenged in cases:
        share = drawn["differing"] / drawn["tokens"]
        found = first_alarms(
            drawn["against"], drawn["agreeing"], share, policy, per_week=PER_WEEK,
            challenged=challenged,
        )  # fmt: skip
        rate = float(np.mean(found >= 0))
        error = np.sqrt(max(rate, 1 / years) * (1 - rate) / years)
        rows.append([name, f"{years:,}", f"{np.sum(found >= 0):,}", f"{rate:.3f}", f"{error:.3f}"])
        click.echo(f"{name}: {rate:.4f}", err=True)
    head = ["what is served", "years", "years with an alarm", "share", "standard error"]
    return markdown(head, rows, f"{PER_WEEK} traces a week, alpha = 0.05. Where no year had an "
                    "alarm, the error is that of one.")  # fmt: skip


def _swaps(texts: dict[str, dict[str, Numbers]]) -> str:
    """Traces from a swap until its alarm, the swap at any time of the year."""
    rows = []
    other = texts["int8-weight-only"]
    edge = float(np.mean(other["differing"] / other["tokens"]))
    for served in SERVED[1:]:
        for name, policy, challenged in (
            ("challenger", WatchPolicy(), True),
            (f"challenger and tolerance {edge:.3f}", WatchPolicy(tolerance=edge), True),
            (f"tolerance {edge:.3f}", WatchPolicy(tolerance=edge), False),
        ):
            rng = np.random.default_rng(1)
            before, after = (
                _year(rng, texts[CHAMPION], SWAPS, PER_WEEK),
                _year(rng, texts[served], SWAPS, PER_WEEK),
            )
            last = WEEKS * PER_WEEK - 500
            when = rng.integers(0, last, SWAPS)
            swapped = np.arange(WEEKS * PER_WEEK) >= when[:, None]
            drawn = {key: np.where(swapped, after[key], before[key]) for key in before}
            found = first_alarms(
                drawn["against"], drawn["agreeing"], drawn["differing"] / drawn["tokens"], policy,
                per_week=PER_WEEK, challenged=challenged,
            )  # fmt: skip
            early, delay = (found >= 0) & (found < when), found - when + 1
            seen = (found >= when) & (delay <= 500)
            some = delay[seen]
            quantiles = np.quantile(some, (0.5, 0.95, 1.0)) if some.size else [np.nan] * 3
            rows.append(
                [served, name, f"{seen.mean():.1%}", f"{early.sum()}",
                 *("–" if np.isnan(q) else f"{q:.0f}" for q in quantiles)]
            )  # fmt: skip
            click.echo(f"{rows[-1]}", err=True)
    head = ["swapped in", "watched by", "seen within 500", "alarms before", "median", "95%", "most"]
    return markdown(head, rows, f"Traces until the alarm, {PER_WEEK} a week; {SWAPS} years "
                    f"each with a swap from "
                    f"{CHAMPION} at a random trace.")  # fmt: skip


if __name__ == "__main__":
    main()

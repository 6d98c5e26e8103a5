"""Judge what log-likelihoods say early: on every scheme, on reruns, and on logs of others.

    python scripts/likelihood_evidence.py make pairs/                 # all schemes; an hour
    python scripts/likelihood_evidence.py make pairs/ int8-dynamic    # or some
    python scripts/likelihood_evidence.py judge pairs/ --json evidence.json
    python scripts/likelihood_evidence.py judge pairs/ --write docs/likelihoods.md
    python scripts/likelihood_evidence.py judge pairs/ --logs fp16.jsonl q4.jsonl
    python scripts/likelihood_evidence.py hellaswag data/log_likelihood items.jsonl.gz public/
    python scripts/likelihood_evidence.py judge public/ --prefix public- --write docs/likelihoods.md

Three questions, each against what all samples say of the scores. Has the mean change of the right
answer's margin the sign of the change in accuracy? Is a drop found with fewer samples, and how
often is one found where there is none? Does what the baseline's margins predict make the interval
of the change in accuracy narrower, and does it still cover?
"""

from __future__ import annotations

import gzip
import json
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pandas as pd
from markdown_tables import markdown, replace_between_markers
from scipy.special import ndtr
from scipy.stats import t as student

from mlflow_degrade.decision.likelihoods import change_of_rows, has_likelihoods
from mlflow_degrade.samples.pairing import ALLOWABLE, pair
from mlflow_degrade.samples.schema import GOLD_MARGIN
from mlflow_degrade.samples.table import SampleScores
from mlflow_degrade.stats import mcnemar, mean_interval
from mlflow_degrade.stats._sequential import degradation_log_e

Floats = npt.NDArray[np.float64]

ALPHA = 0.05
NEGLIGIBLE = 0.003  # accuracy changes that no sign is asked of
SHARE = 0.25  # of the samples, answered by the candidate when the interval is made
REPLAYS = 400
SUITE, LIMIT = "starter", 220
FLATTENED = 0.98  # All log-likelihoods times this: no answer changes, and margins shrink.
RERUNS = {"fp32": "one-by-one", "int8-dynamic": "batched"}
"""Of these, the same model by another path: what is computed together changes, nothing else."""


@dataclass(frozen=True)
class Pair:
    """What both sides have of every sample."""

    name: str
    task: npt.NDArray[np.str_]
    change: Floats  # of the score: −1, 0, 1
    margin: Floats  # the baseline's
    moved: Floats  # candidate's margin − baseline's

    @property
    def n(self) -> int:
        return int(self.change.size)

    def rows(self, where: npt.NDArray[Any], name: str) -> Pair:
        return Pair(
            name, self.task[where], self.change[where], self.margin[where], self.moved[where]
        )


def read_pair(name: str, baseline: SampleScores, candidate: SampleScores) -> Pair | None:
    """Samples with a margin on both sides; None where there are none."""
    if not (has_likelihoods(baseline) and has_likelihoods(candidate)):
        return None
    paired = pair(baseline, candidate, allow=ALLOWABLE)
    parts: list[tuple[Any, ...]] = []
    for task in paired.tasks:
        rows = task.baseline_row, task.candidate_row
        moved = change_of_rows(baseline, candidate, rows, GOLD_MARGIN)
        margin = np.asarray(baseline.table[GOLD_MARGIN].to_numpy(), float)[rows[0]]
        known = np.isfinite(moved)
        names = np.full(int(known.sum()), task.name)
        parts.append((names, task.difference[known], margin[known], moved[known]))
    return Pair(name, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def flattened(one: Pair) -> Pair:
    """The baseline against itself with less confidence, which changes no answer."""
    moved = (FLATTENED - 1) * one.margin
    return Pair(
        f"the baseline, flattened by {FLATTENED}", one.task, 0 * one.change, one.margin, moved
    )


# -- signs -------------------------------------------------------------------------------------


def at_zero(one: Pair) -> tuple[float, float]:
    """Change of the margin where the baseline's is 0, by a straight line, and its robust error."""
    # Less confidence moves every margin towards 0, and none that is there.
    x = np.stack([np.ones(one.n), one.margin], axis=1)
    inverse = np.linalg.inv(x.T @ x)
    fitted = inverse @ x.T @ one.moved
    residual = one.moved - x @ fitted
    covariance = inverse @ (x.T * residual**2) @ x @ inverse
    return float(fitted[0]), float(np.sqrt(covariance[0, 0]))


def sign_row(one: Pair) -> dict[str, Any]:
    """Change of accuracy and margin with the tests of both."""
    worse, better = int((one.change < 0).sum()), int((one.change > 0).sum())
    interval = mean_interval(one.moved, confidence=1 - 2 * ALPHA)
    delta = float(one.change.mean())
    centre, error = at_zero(one)
    half = student.ppf(1 - ALPHA, one.n - 2) * error
    return {
        "pair": one.name,
        "n": one.n,
        "worse": worse,
        "better": better,
        "delta_pp": 100 * delta,
        "p_worse": float(mcnemar(worse, better, one.n).p_worse),
        "margin": float(one.moved.mean()),
        "margin_low": float(interval.low),
        "margin_high": float(interval.high),
        "at_zero": centre,
        "at_zero_low": centre - half,
        "at_zero_high": centre + half,
        "at_zero_agrees": bool(np.sign(centre) == np.sign(delta)),
        "beyond": bool(abs(delta) > NEGLIGIBLE),
        "agrees": bool(np.sign(one.moved.mean()) == np.sign(delta)),
    }


# -- samples needed ----------------------------------------------------------------------------


def stops(signs: Floats, rng: np.random.Generator, replays: int) -> npt.NDArray[np.int64]:
    """Samples until the e-process of "worse" reaches 1/alpha, in random orders; n + 1 for never."""
    found = np.empty(replays, np.int64)
    for i in range(replays):
        path = rng.permutation(signs)
        log_e = degradation_log_e(np.cumsum(path < 0), np.cumsum(path > 0))
        reached = np.flatnonzero(log_e >= np.log(1 / ALPHA))
        found[i] = reached[0] + 1 if reached.size else signs.size + 1
    return found


def speed_row(one: Pair, rng: np.random.Generator, replays: int) -> dict[str, Any]:
    """How many samples accuracy and margin need to call the candidate worse."""
    row: dict[str, Any] = {"pair": one.name, "n": one.n}
    for name, values in (("score", one.change), ("margin", one.moved)):
        found = stops(np.sign(values), rng, replays)
        median = int(np.median(found))
        row[f"{name}_items"] = median if median <= one.n else None
        row[f"{name}_found"] = float((found <= one.n).mean())
    return row


def flipped_alarms(one: Pair, rng: np.random.Generator, replays: int) -> dict[str, Any]:
    """Share of alarms where every sample's change gets a random sign."""
    row: dict[str, Any] = {"pair": one.name, "n": one.n}
    for name, values in (("score", one.change), ("margin", one.moved)):
        signs = rng.choice([-1.0, 1.0], (replays, one.n)) * np.abs(np.sign(values))
        log_e = [degradation_log_e(np.cumsum(s < 0), np.cumsum(s > 0)).max() for s in signs]
        row[name] = float(np.mean(np.asarray(log_e) >= np.log(1 / ALPHA)))
    return row


# -- the control variate -----------------------------------------------------------------------


def predicted(moved: Floats, where: Floats) -> Floats:
    """Mean change of the score at a baseline's margin, if margins move as those of `moved` did."""
    spread = max(float(moved.std()), 1e-9)
    # The bulk moves less than a few outliers make it seem.
    robust = max(1.4826 * float(np.median(np.abs(moved - np.median(moved)))), 1e-9)
    scale = min(spread, robust)
    return ndtr((where + float(np.median(moved))) / scale) - (where > 0)


def adjusted(one: Pair, drawn: npt.NDArray[np.int64], folds: int = 2) -> tuple[float, float]:
    """Estimate of the mean over all samples from some, and its standard error."""
    # Each fold's prediction, and how far it is trusted, come from the others, so that what is
    # subtracted has the mean that is added.
    every = np.arange(one.n)
    estimates, variances = [], []
    for k in range(folds):
        here, other = (
            drawn[k::folds],
            np.concatenate([drawn[j::folds] for j in range(folds) if j != k]),
        )
        p = predicted(one.moved[other], one.margin[every])
        y, x = one.change[other], p[other]
        trust = float(np.clip(np.cov(y, x)[0, 1] / max(x.var(ddof=1), 1e-12), 0.0, 1.0))
        residual = one.change[here] - trust * p[here]
        estimates.append(residual.mean() + trust * p.mean())
        variances.append(residual.var(ddof=1) / here.size)
    return float(np.mean(estimates)), float(np.sqrt(np.mean(variances) / folds))


def variate_row(one: Pair, rng: np.random.Generator, replays: int) -> dict[str, Any]:
    """Width and coverage of the interval from a part of the samples, plain and adjusted."""
    size, truth = int(SHARE * one.n), float(one.change.mean())
    # Drawn without replacement from samples whose mean is the target.
    finite = np.sqrt(1 - size / one.n)
    t = student.ppf(1 - ALPHA, size - 1)
    widths, covered, biases = np.zeros((replays, 2)), np.zeros((replays, 2)), np.zeros((replays, 2))
    for i in range(replays):
        drawn = rng.permutation(one.n)[:size]
        y = one.change[drawn]
        plain = float(y.mean()), float(y.std(ddof=1) / np.sqrt(size))
        for k, (centre, error) in enumerate((plain, adjusted(one, drawn))):
            half = t * error * finite
            widths[i, k], covered[i, k] = 2 * half, abs(centre - truth) <= half + 1e-12
            biases[i, k] = centre - truth
    both = one.change.std() > 0 and one.moved.std() > 0
    correlation = float(np.corrcoef(one.change, one.moved)[0, 1]) if both else 0.0
    ratio = widths[:, 1].mean() / max(widths[:, 0].mean(), 1e-12)
    return {
        "pair": one.name,
        "n": one.n,
        "drawn": size,
        "flips": int(np.count_nonzero(one.change)),
        "correlation": correlation,
        "if_mean_were_known": float(np.sqrt(1 - correlation**2)),
        "ratio": float(ratio),
        "ratio_population": float(np.sqrt(1 - (1 - ratio**2) * (1 - SHARE))),
        "error_ratio": float(biases[:, 1].std() / max(biases[:, 0].std(), 1e-12)),
        "coverage_plain": float(covered[:, 0].mean()),
        "coverage": float(covered[:, 1].mean()),
    }


# -- commands ----------------------------------------------------------------------------------


@click.group(help=__doc__.splitlines()[0])
def main() -> None:
    pass


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("schemes", nargs=-1)
@click.option("--model", default="starter", show_default=True)
@click.option("--limit", default=LIMIT, show_default=True, help="Samples of each task.")
def make(folder: Path, schemes: tuple[str, ...], model: str, limit: int) -> None:
    """Evaluate schemes and reruns, each beside its baseline."""
    from mlflow_degrade.evaluation.run import EvaluationSettings, evaluate_model, evaluate_pair
    from mlflow_degrade.evaluation.suite import load_suite
    from mlflow_degrade.optimize.recipe import Recipe, run_recipe
    from mlflow_degrade.optimize.schemes import SCHEMES

    folder.mkdir(parents=True, exist_ok=True)
    suite, settings = load_suite([SUITE], limit=limit), EvaluationSettings(device="cpu")

    def keep(name: str, sides: tuple[SampleScores, SampleScores]) -> None:
        for side, scores in zip(("baseline", "candidate"), sides, strict=True):
            scores.write_parquet(folder / f"{name}.{side}.parquet")

    for scheme in schemes or [name for name in SCHEMES if name != "fp32"]:
        recipe = Recipe.of_scheme(scheme)
        exported = run_recipe(model, recipe.before_quantization)
        made = run_recipe(model, recipe, force=True)
        before, after = evaluate_pair(exported, made, suite, settings)
        keep(scheme, (before.samples, after.samples))
        click.echo(f"{scheme}: {before.path}", err=True)
        for name, path in RERUNS.items():
            if (
                name in (scheme, "fp32")
                and not (folder / f"rerun {name}.baseline.parquet").exists()
            ):
                directory, first = (made, after) if name == scheme else (exported, before)
                other = path if first.path != path else "shared-prefix"
                again = evaluate_model(directory, suite, settings=settings, path=other)
                keep(f"rerun {name}", (first.samples, again.samples))


@main.command()
@click.argument("likelihoods", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("items", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def hellaswag(likelihoods: Path, items: Path, folder: Path) -> None:
    """Make pairs of what pchizhov/hellaswag-evaluation published of ten models.

    LIKELIHOODS is its folder data/log_likelihood, ITEMS the validation questions as JSON Lines,
    with "answer". Pairs are neighbours by accuracy, the better one first, and the same model with
    another prompt: nonsense before the question in place of nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(items, "rt", encoding="utf-8") as lines:
        gold = [json.loads(line)["answer"] for line in lines]

    def read(prompt: str) -> dict[str, SampleScores]:
        files = sorted((likelihoods / f"{prompt}_prompt").glob("*.csv"))
        plain = [file for file in files if not file.name.startswith(("sum_", "byte_mean_"))]
        return {
            file.stem.rpartition("--")[2]: scored(pd.read_csv(file).to_numpy(), gold, file.stem)
            for file in plain
        }

    full, bare, prefixed = read("full"), read("zero"), read("placeholder")
    ranked = sorted(full, key=lambda name: -full[name].table["score"].to_numpy().mean())
    pairs = {
        f"{worse} after {better}": (full[better], full[worse]) for better, worse in pairwise(ranked)
    }
    pairs |= {f"{name}, nonsense before it": (bare[name], prefixed[name]) for name in prefixed}
    for name, sides in pairs.items():
        for side, scores in zip(("baseline", "candidate"), sides, strict=True):
            scores.write_parquet(folder / f"{name}.{side}.parquet")


def scored(values: Floats, gold: list[int], model: str) -> SampleScores:
    """Scores of a multiple-choice task from log-likelihoods, of shape (items, choices)."""
    right = np.asarray(gold)
    of_right = values[np.arange(right.size), right]
    wrong = values.copy()
    wrong[np.arange(right.size), right] = -np.inf
    frame = pd.DataFrame({
        "task": "hellaswag", "doc_id": np.arange(right.size), "metric": "acc",
        "score": (values.argmax(axis=1) == right).astype(float),
        "gold_loglikelihood": of_right, GOLD_MARGIN: of_right - wrong.max(axis=1),
        "loglikelihoods": list(values),
    })  # fmt: skip
    return SampleScores.from_pandas(frame, model=model)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--logs", nargs=2, multiple=True, metavar="BASELINE CANDIDATE", help="More pairs.")
@click.option("--replays", default=REPLAYS, show_default=True)
@click.option("--json", "json_", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--write", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--prefix", default="", help="Of the names of the tables in that document.")
def judge(
    folder: Path,
    logs: tuple[tuple[str, str], ...],
    replays: int,
    json_: Path | None,
    write: Path | None,
    prefix: str,
) -> None:
    """Put the three questions to every pair."""
    from mlflow_degrade.samples.readers import read_samples

    pairs, reruns, bare = [], [], []
    for file in sorted(folder.glob("*.baseline.parquet")):
        name = file.name.removesuffix(".baseline.parquet")
        other = file.with_name(f"{name}.candidate.parquet")
        sides = SampleScores.read_parquet(file), SampleScores.read_parquet(other)
        found = read_pair(name, *sides)
        if found is not None:
            (reruns if name.startswith("rerun ") else pairs).append(found)
    for references in logs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sides = read_samples(references[0]), read_samples(references[1])
        found = read_pair(Path(references[1]).stem, *sides)
        if found is None:
            bare.append(list(references))
        else:
            pairs.append(found)
    if pairs:
        reruns.append(flattened(pairs[0]))
    rng = np.random.default_rng(0)
    tasks = [
        one.rows(one.task == task, f"{one.name}, {task}")
        for one in pairs
        for task in np.unique(one.task)
    ]
    evidence = {
        "alpha": ALPHA,
        "replays": replays,
        "logs_without_likelihoods": bare,
        "signs": [sign_row(one) for one in pairs],
        "signs_by_task": [sign_row(one) for one in tasks],
        "reruns": [sign_row(one) for one in reruns],
        "items": [speed_row(one, rng, replays) for one in [*pairs, *reruns]],
        "alarms_under_flipped_signs": [
            flipped_alarms(one, rng, 5 * replays) for one in [*pairs, *reruns]
        ],
        # Where nothing flips there is no width that could be narrower.
        "control_variate": [variate_row(one, rng, replays) for one in pairs if one.change.any()],
    }
    if json_ is not None:
        json_.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    shown = {prefix + name: table for name, table in tables(evidence).items()}
    if write is not None:
        text = replace_between_markers(write.read_text(encoding="utf-8"), shown)
        write.write_text(text, encoding="utf-8")
    else:
        click.echo("\n\n".join(shown.values()))


def tables(evidence: dict[str, Any]) -> dict[str, str]:
    """The Markdown tables of the document."""
    items = {row["pair"]: row for row in evidence["items"]}
    flipped = {row["pair"]: row for row in evidence["alarms_under_flipped_signs"]}
    same = {row["pair"] for row in evidence["reruns"]}
    rows = []
    for row in [*evidence["signs"], *evidence["reruns"]]:
        needed, rerun = items[row["pair"]], row["pair"] in same
        rows.append(
            [
                row["pair"],
                f"{row['n']:,}",
                f"{row['worse']} / {row['better']}",
                f"{row['delta_pp']:+.2f}",
                f"{row['p_worse']:.2g}",
                _interval(row, "margin"),
                _interval(row, "at_zero"),
                "–" if rerun or not row["beyond"] else "yes" if row["agrees"] else "**no**",
                *(
                    f"{_count(needed[f'{name}_items'])} ({100 * needed[f'{name}_found']:.0f}%)"
                    for name in ("score", "margin")
                ),
            ]
        )
    beyond = [row for row in evidence["signs"] if row["beyond"]]
    by_task = [row for row in evidence["signs_by_task"] if row["beyond"]]
    worst = {name: max(row[name] for row in flipped.values()) for name in ("score", "margin")}
    agreed = [f"{sum(r['agrees'] for r in some)} of {len(some)}" for some in (beyond, by_task)]
    by_line = sum(row["at_zero_agrees"] for row in by_task)
    note = (
        f"Beyond ±{100 * NEGLIGIBLE:.1f} pp the signs agree for {agreed[0]} candidates and "
        f"{agreed[1]} single tasks of theirs ({by_line} by the line at margin 0). "
        f"Samples needed: median of {evidence['replays']} random orders, "
        "and the share of orders in which a drop is found at all. Where every "
        "sample's change gets a random sign, at most these shares raise an alarm: score "
        f"{worst['score']:.3f}, margin {worst['margin']:.3f} ({5 * evidence['replays']:,} replays "
        f"each, alpha {evidence['alpha']})."
    )
    head = [
        "candidate", "samples", "worse / better", "accuracy, pp", "p", "margin, nats",
        "at margin 0", "same sign", "samples needed by scores", "by the margin's sign",
    ]  # fmt: skip
    early = markdown(head, rows, note)
    rows = [
        [
            row["pair"],
            str(row["flips"]),
            f"{row['correlation']:+.2f}",
            f"{row['if_mean_were_known']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_population']:.2f}",
            f"{row['error_ratio']:.2f}",
            f"{row['coverage_plain']:.3f}",
            f"{row['coverage']:.3f}",
        ]
        for row in evidence["control_variate"]
    ]
    narrow = sum(row["ratio"] <= 0.8 for row in evidence["control_variate"])
    note = (
        f"{narrow} of {len(rows)} candidates reach 0.80. {100 * SHARE:.0f}% of the samples, "
        f"{evidence['replays']:,} draws, nominal coverage {1 - 2 * evidence['alpha']:.2f}."
    )
    head = [
        "candidate", "flips", "correlation of the changes", "width with the mean known",
        "width, mean of these samples", "width, mean of all questions", "true error",
        "coverage without", "coverage with",
    ]  # fmt: skip
    return {"early": early, "variate": markdown(head, rows, note)}


def _interval(row: dict[str, Any], name: str) -> str:
    ends = row[f"{name}_low"], row[f"{name}_high"]
    shown = "[{:+.3f}, {:+.3f}]".format(*ends) if np.isfinite(ends).all() else ""
    return f"{row[name]:+.3f} {shown}".rstrip()


def _count(items: int | None) -> str:
    return "never" if items is None else str(items)


if __name__ == "__main__":
    main()

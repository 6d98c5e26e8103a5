"""Break the package by hand in many places, one after the other, and see that the tests notice.

    python scripts/mutations.py                     # all of them, about ten minutes
    python scripts/mutations.py registry pairing    # some rooms only

A mutation is a text that occurs once in the package, what takes its place, and the tests that must
fail then. Files are found by that text and tests by patterns of their names, so modules and tests
may move; a text that is no longer there, or there twice, is an error. Each runs in a copy.
The frozen decisions are no part of it: they notice everything, and say nothing about the reason.
Prints the survivors, and exits with 1 where there are any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = "mlflow_degrade"
_LEFT_OUT = ("frozen",)


@dataclass(frozen=True)
class Mutation:
    """A change of the package, and the tests by which it must be found.

    `tests` are patterns of file names below ``tests``, separated by blanks; `only` is pytest's
    ``-k``; `slow` runs tests marked so as well.
    """

    room: str
    old: str
    new: str
    tests: str
    only: str = ""
    slow: bool = False


MUTATIONS = (
    # decision
    Mutation(
        "decision",
        'if degraded and (policy.rule == "no_degradation" or missing):',
        'if degraded and policy.rule == "no_degradation":',
        "test_decision.py test_verdict_boundaries.py",
    ),
    Mutation(
        "decision",
        "alpha_attempt = policy.alpha if attempt is None else attempt_alpha(policy.alpha, attempt)",
        "alpha_attempt = policy.alpha",
        "test_decision.py",
    ),
    Mutation(
        "decision",
        'needed.append((task, "the margin, where it is worse,"))',
        "pass",
        "test_decision.py test_verdict_boundaries.py test_verdict_evidence.py",
    ),
    Mutation(
        "decision",
        "if mcnemar(only_candidate, only_baseline).p_worse <= policy.alpha:",
        "if mcnemar(only_baseline, only_candidate).p_worse <= policy.alpha:",
        "test_decision.py",
    ),
    Mutation(
        "decision",
        "independent = _independent(n, tests)",
        "independent = n",
        "test_data_power.py test_decision.py test_shared_documents.py test_copied_documents.py",
    ),
    Mutation(
        "decision",
        "limits = [sample.upper(policy.alpha), *(t.upper(level) for t in tests.alone.values())]",
        "limits = [-1.0]",
        "test_skewed_differences.py",
    ),
    Mutation(
        "decision",
        "and found.margin <= power.margin",
        "and True",
        "test_origin.py test_processors.py",
    ),
    # stats
    Mutation(
        "stats",
        "return float(-math.expm1(math.log1p(-policy.alpha) / gating))",
        "return policy.alpha",
        "test_data_power.py test_decision.py",
    ),
    Mutation(
        "stats",
        "p = max(melded_cdf(b, c, n, -margin, deep=True), _SMALLEST_P)",
        "p = max(melded_cdf(b, c, n + 1, -margin, deep=True), _SMALLEST_P)",
        "test_noninferiority.py",
    ),
    Mutation(
        "stats",
        'return 6.0 * check_alpha(alpha) / (math.pi * check_count("attempt", attempt, 1)) ** 2',
        'return 6.0 * check_alpha(alpha) / (math.pi**2 * check_count("attempt", attempt, 1))',
        "test_ledger.py",
    ),
    Mutation(
        "stats",
        "statistic = float(drops[informative].max())",
        "statistic = float(drops[informative].mean())",
        "test_aggregate.py test_rules.py",
    ),
    Mutation(
        "stats",
        "log_p_min = float(nulls.log_p.min())",
        "log_p_min = float(nulls.log_p.max())",
        "test_aggregate.py test_rules.py",
    ),
    # pairing
    Mutation(
        "pairing",
        "if not allowed or both == 0:",
        "if both == 0:",
        "test_pairing_refusals.py test_pairing.py",
    ),
    Mutation(
        "pairing",
        'if "duplicates" not in allowed:',
        "if False:",
        "test_pairing_refusals.py test_pairing.py",
    ),
    Mutation(
        "pairing",
        'if "prompts" not in allowed:',
        "if False:",
        "test_prompting.py",
    ),
    Mutation(
        "pairing",
        "return codes if document is None else link(codes, document)[codes]",
        "return codes",
        "test_copied_documents.py test_paired_items.py test_pairing.py",
    ),
    # readers
    Mutation(
        "readers",
        "return 0.0 if answer is None else score(str(answer), str(target))",
        "return 1.0 if answer is None else score(str(answer), str(target))",
        "test_layouts.py test_tables.py",
    ),
    Mutation(
        "readers",
        'rows += found if missing == "unscored" else _complete(found, origin)',
        "rows += found",
        "test_lm_eval_layouts.py",
    ),
    Mutation(
        "readers",
        "return None if failed or was_not_scored(details) else as_score(logged)",
        "return None if failed else as_score(logged)",
        "test_harness_bundles.py",
    ),
    # optimize
    Mutation(
        "optimize",
        'if found["quantized_share"] >= least:',
        "if True:",
        "test_float_share.py test_schemes.py",
    ),
    Mutation(
        "optimize",
        "if self.correlation >= BROKEN_CORRELATION:",
        "if True:",
        "test_export_tasks.py test_parity.py test_schemes.py",
        slow=True,
    ),
    Mutation(
        "optimize",
        "limit = export_tolerance(candidate)",
        "limit = float('inf')",
        "test_export.py test_encoder_models.py test_parity.py test_export_tasks.py",
    ),
    # engine
    Mutation(
        "engine",
        "depth = min(node.depth, *free[start:index])",
        "depth = node.depth",
        "test_sharing.py",
    ),
    Mutation(
        "engine",
        "if len(ids) > context_length + 1:",
        "if len(ids) > context_length + 2:",
        "test_plan.py",
    ),
    Mutation(
        "engine",
        '_LEVELS = {2: "float16", 3: "bfloat16", 4: "8-bit"}',
        '_LEVELS = {2: "float16", 3: "bfloat16"}',
        "test_dependent_operations.py",
    ),
    # evaluation
    Mutation(
        "evaluation",
        "reading.difference <= FURTHEST and kept",
        "kept",
        "test_known_texts.py",
    ),
    Mutation(
        "evaluation",
        "score.top[0][0] == token and _lead(score) > gap",
        "score.top[0][0] == token",
        "test_known_texts.py",
    ),
    Mutation(
        "evaluation",
        "if _ends(self._stopping, self._texts[i])",
        "if self._texts[i]",
        "test_known_texts.py",
    ),
    Mutation(
        "registry",
        "math.isclose(recorded, again, rel_tol=_TOLERANCE, abs_tol=1e-9)",
        "recorded == again",
        "test_evidence_elsewhere.py",
    ),
    Mutation(
        "registry",
        "return _canonical(own) == _canonical(marshal.loads(content[_HEADER:]))",
        "return own == marshal.loads(content[_HEADER:])",
        "test_compiled_code.py",
    ),
    Mutation(
        "samples",
        "np.rint(_GRID * np.exp(-_FALL * size.to_numpy(dtype=np.float64))) / _GRID",
        "np.exp(-_FALL * size.to_numpy(dtype=np.float64))",
        "test_planned_order.py",
    ),
    Mutation(
        "evaluation",
        'if choose_path(*probes.values()) == "one-by-one":',
        "if False:",
        "test_paths.py",
    ),
    # engines, workers, large tables, traffic
    Mutation(
        "endpoint",
        "if len(after) != len(before) or apart > _SAME:",
        "if len(after) != len(before):",
        "test_endpoint.py",
    ),
    Mutation(
        "endpoint",
        "if sorted(places) != list(range(count)):",
        "if len(places) != count:",
        "test_endpoint.py",
    ),
    Mutation(
        "endpoint",
        'if known and known.digest and named != f"{known.model}@{known.digest}":',
        "if False:",
        "test_endpoint.py test_endpoint_runs.py",
    ),
    Mutation(
        "endpoint",
        "if step is not None and step > TOLERANCE and median(before) <= TOLERANCE:",
        "if False:",
        "test_endpoint.py",
    ),
    Mutation("endpoint", "if max(sums, default=0.0) > 1.001:", "if False:", "test_endpoint.py"),
    Mutation(
        "endpoint",
        "if decimals is not None and decimals < _FEWEST_DECIMALS:",
        "if False:",
        "test_endpoint.py",
    ),
    Mutation(
        "endpoint",
        'if weights.get("digest") not in (None, digest, *_parts(content.files)):',
        "if False:",
        "test_endpoint_runs.py",
    ),
    Mutation(
        "artifacts", "if content.digest != given.digest:", "if False:", "test_engine_files.py"
    ),
    Mutation("artifacts", "if tested != self.digest:", "if False:", "test_engine_files.py"),
    Mutation(
        "artifacts",
        "if found.digest != tested:",
        "if False:",
        "test_promotion.py test_evaluator.py",
        only="not_evaluated or two_runs",
    ),
    Mutation(
        "shards",
        "if (found := digest_model(folder)) != place.digest:",
        "if False:",
        "test_shards.py test_ray_workers.py",
    ),
    Mutation(
        "shards",
        "self._prefixes.clear()  # those of another model",
        "pass",
        "test_shards.py",
    ),
    Mutation(
        "streaming",
        "if again and (restarts < 2 or part == self.parts):",
        "if False:",
        "test_streaming.py",
    ),
    Mutation(
        "streaming",
        "self._bits[name] = bits[whole:]",
        "self._bits[name] = bits[:0]",
        "test_streaming.py",
    ),
    Mutation(
        "streaming",
        "self.between_wrong += int((changed & wrong).sum())",
        "self.between_wrong += int(changed.sum())",
        "test_streaming.py",
    ),
    Mutation("watch", "self.spent += share", "self.spent += 0.0", "test_watch.py"),
    Mutation("watch", "if trace.prompt in self.prompts:", "if False:", "test_watch.py"),
    Mutation(
        "watch",
        "np.concatenate(list(by_claim.values())) - math.log(len(by_claim))",
        "np.concatenate(list(by_claim.values()))",
        "test_watch.py",
    ),
    Mutation(
        "watch",
        "return trace not in self.seen and time_ms >= self.since_ms and not self.over(time_ms)",
        "return time_ms >= self.since_ms and not self.over(time_ms)",
        "test_watch.py test_watch_command.py",
    ),
    Mutation("watch", "spent=self.spent,", "spent=0.0,", "test_watch.py"),
    # registry
    Mutation(
        "registry",
        "if expected - {content.artifact_digest}:",
        "if False:",
        "test_verification.py",
    ),
    Mutation(
        "registry",
        "if baseline is not None and baseline == candidate:",
        "if False:",
        "test_verification.py test_forgeries.py",
    ),
    Mutation(
        "registry",
        'if baselines and review.digests.get("baseline_model") not in baselines:',
        "if False:",
        "test_verification.py test_gated_store.py",
    ),
    Mutation(
        "registry",
        "if self.config.override_users and who not in self.config.override_users:",
        "if False:",
        "test_gated_store.py",
    ),
    # tracking
    Mutation(
        "tracking",
        "if logged.schema_version != again.schema_version or any(differences(logged, again)):",
        "if False:",
        "test_promotion.py",
        only="tampered",
    ),
    Mutation(
        "tracking",
        "if content is not None and bound not in (None, content.artifact_digest):",
        "if False:",
        "test_promotion.py",
        only="copy_with_other_code",
    ),
    # report
    Mutation(
        "report",
        "if threshold is None or (float(text) <= threshold) == (p <= threshold):",
        "if True:",
        "test_numbers.py",
    ),
    Mutation(
        "report",
        "if p < min(_TINY_P, limit / 2):",
        "if p < _TINY_P:",
        "test_numbers.py",
    ),
    # cli
    Mutation(
        "cli",
        "return 0 if found.ok else 1",
        "return 0",
        "test_verification.py test_signing.py",
    ),
    Mutation(
        "cli",
        "_out(decision.to_json(), json_)\n    click.get_current_context().exit(decision.exit_code)",
        "_out(decision.to_json(), json_)\n    click.get_current_context().exit(0)",
        "test_compare_command.py",
    ),
    # recipes
    Mutation(
        "recipes",
        "earlier = None if fresh else find_evaluation(key, experiments=experiments)",
        "earlier = find_evaluation(key, experiments=experiments)",
        "test_quantize.py",
        only="second_run",
        slow=True,
    ),
    Mutation(
        "recipes",
        "click.get_current_context().exit(outcome.decision.exit_code)",
        "click.get_current_context().exit(0)",
        "test_quantize_command.py",
        slow=True,
    ),
)


def sources(tree: Path) -> dict[Path, str]:
    """The files of the package."""
    files = sorted((tree / _PACKAGE).rglob("*.py"))
    return {path: path.read_text(encoding="utf-8") for path in files}


def file_with(files: Mapping[Path, str], text: str) -> Path:
    """The file of the package with a text, which must be there once."""
    found = [(path, count) for path, content in files.items() if (count := content.count(text))]
    if len(found) != 1 or found[0][1] != 1:
        places = ", ".join(f"{path} ({count})" for path, count in found)
        raise click.ClickException(f"{text!r} is in {places or 'no file'}: change the table.")
    return found[0][0]


def files_of(tree: Path, patterns: str) -> list[str]:
    """Files of tests by their names, wherever they are."""
    found = [
        str(path.relative_to(tree))
        for pattern in patterns.split()
        for path in sorted((tree / "tests").rglob(pattern))
        if not any(word in path.name for word in _LEFT_OUT)
    ]
    if not found:
        raise click.ClickException(f"no tests are called {patterns}: change the table.")
    return found


def run_tests(tree: Path, mutation: Mutation) -> subprocess.CompletedProcess[str]:
    """The tests of a mutation in a copy of the tree."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-x", "--no-header"]
    command += ["-m", "slow or not slow"] if mutation.slow else []
    command += ["-k", mutation.only] if mutation.only else []
    command += files_of(tree, mutation.tests)
    return subprocess.run(
        command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def killed(tree: Path, mutation: Mutation) -> tuple[bool, str]:
    """Whether the tests notice a mutation, and which one did."""
    path = file_with(sources(tree), mutation.old)
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        compile(path.read_text(encoding="utf-8"), str(path), "exec")
        done = run_tests(tree, mutation)
    finally:
        path.write_text(original, encoding="utf-8")
    # 1 is a failed test; anything else (no tests, a broken import) says nothing about them.
    if done.returncode not in (0, 1):
        raise click.ClickException(f"{mutation.old!r}: pytest failed\n{done.stdout[-3000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return done.returncode == 1, failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else ""


@click.command(help=__doc__.split("\n")[0])
@click.argument("rooms", nargs=-1)
@click.option("--list", "listed", is_flag=True, help="Only check the table.")
def main(rooms: tuple[str, ...], listed: bool) -> None:
    """Run the mutations of some rooms, or of all."""
    known = {mutation.room for mutation in MUTATIONS}
    if unknown := set(rooms) - known:
        raise click.UsageError(f"unknown: {sorted(unknown)}; known: {sorted(known)}")
    chosen = [m for m in MUTATIONS if not rooms or m.room in rooms]
    files = sources(_ROOT)
    for mutation in MUTATIONS:  # a stale table is said before anything is run
        file_with(files, mutation.old)
        files_of(_ROOT, mutation.tests)
    if listed:
        print(f"{len(MUTATIONS)} mutations in {len(known)} rooms")
        return
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        tree = Path(scratch) / "tree"
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "*.egg-info")
        shutil.copytree(_ROOT, tree, ignore=ignored, symlinks=True)
        for mutation in chosen:
            start = time.monotonic()
            found, by = killed(tree, mutation)
            word = "killed  " if found else "SURVIVED"
            seconds = time.monotonic() - start
            print(
                f"{word} {mutation.room:10} {seconds:4.0f} s  {mutation.old[:70]}  {by}", flush=True
            )
            if not found:
                survivors.append(mutation)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed")
    if survivors:
        raise SystemExit("survivors:\n" + "\n".join(f"  {m.old}\n  {m.new}" for m in survivors))


if __name__ == "__main__":
    main()

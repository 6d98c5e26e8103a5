"""Decisions to report on, made by the real pairing and the real tests from made-up samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mlflow_degrade import Decision, GatePolicy, PairedScores, SampleScores, decide, pair

Counts = Mapping[str, tuple[int, int, int, int]]

# Regressions, improvements, right on both sides, samples: five tasks of 220 samples, with the
# pooled counts (b/c 12/16, 48/41, 166/49) of three real quantizations of a 135M-parameter model.
PASSING: Counts = {
    "starter_agreement": (2, 3, 181, 220),
    "starter_geography": (3, 5, 165, 220),
    "starter_inflection": (2, 2, 189, 220),
    "starter_numbers": (2, 1, 176, 220),
    "starter_relations": (3, 5, 164, 220),
}
FAILING: Counts = {
    "starter_agreement": (25, 10, 156, 220),
    "starter_geography": (31, 9, 137, 220),
    "starter_inflection": (21, 11, 170, 220),
    "starter_numbers": (71, 7, 107, 220),
    "starter_relations": (18, 12, 149, 220),
}
TOO_FEW: Counts = {
    "starter_agreement": (0, 0, 2, 3),
    "starter_geography": (0, 1, 2, 3),
    "starter_inflection": (0, 0, 2, 3),
    "starter_numbers": (1, 0, 1, 3),
}
CANDIDATES = {
    "PASS": "int8-weight-only",
    "FAIL": "int4-weight-only",
    "INCONCLUSIVE": "int8-dynamic",
}

COST = {
    "baseline": {
        "size/bytes": (538_900_000.0, "bytes"),
        "throughput/prefill_tokens_per_second": (431.0, "tokens/s"),
        "throughput/decode_tokens_per_second": (21.3, "tokens/s"),
        "latency/p50_ms": (47.8, "ms"),
        "memory/peak_rss_bytes": (1_704_000_000.0, "bytes"),
    },
    "candidate": {
        "size/bytes": (265_200_000.0, "bytes"),
        "throughput/prefill_tokens_per_second": (371.0, "tokens/s"),
        "throughput/decode_tokens_per_second": (46.1, "tokens/s"),
        "latency/p50_ms": (22.1, "ms"),
        "memory/peak_rss_bytes": (1_712_000_000.0, "bytes"),
    },
}

SLOWER = {
    **COST,
    "candidate": {
        **COST["candidate"],
        "speed_ratio/prefill": (0.86, "×"),
        "speed_ratio/prefill_ci_low": (0.8, "×"),
        "speed_ratio/prefill_ci_high": (0.9, "×"),
    },
}
"""The same with the interval of the ratio of speeds."""


def scores(values: Mapping[str, Any], model: str, **columns: Any) -> SampleScores:
    """Samples of several tasks with a prompt, a target and an answer each."""
    frames = []
    for task, given in values.items():
        frame = pd.DataFrame({"task": task, "score": np.asarray(given, dtype=float)})
        frame["doc_id"] = [str(i) for i in range(len(frame))]
        frame["prompt"] = [f"Question: what is item {i} of {task}?\nAnswer:" for i in frame.index]
        frame["target"] = [f"item {i}" for i in frame.index]
        frame["response"] = [
            f"item {i}" if right == 1 else f"something else than {i}"
            for i, right in zip(frame.index, frame["score"], strict=True)
        ]
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True).assign(**{"metric": "acc", **columns})
    return SampleScores.from_pandas(table, model=model, model_digest=f"sha256:{model}")


def paired_counts(counts: Counts, candidate: str = "SmolLM2-135M int8-weight-only") -> PairedScores:
    """Paired binary samples with the given outcomes per task."""
    base, cand = {}, {}
    for task, (b, c, both, n) in counts.items():
        base[task] = [1] * b + [0] * c + [1] * both + [0] * (n - b - c - both)
        cand[task] = [0] * b + [1] * c + [1] * both + [0] * (n - b - c - both)
    return pair(scores(base, "SmolLM2-135M fp32"), scores(cand, candidate))


def case(verdict: str) -> tuple[Decision, PairedScores]:
    """A decision with this verdict and the samples it was made from."""
    counts = {"PASS": PASSING, "FAIL": FAILING, "INCONCLUSIVE": TOO_FEW}[verdict]
    paired = paired_counts(counts, f"SmolLM2-135M {CANDIDATES[verdict]}")
    return decide(paired, GatePolicy()), paired


def provenance(verdict: str) -> dict[str, Any]:
    """What a recipe knows about its run."""
    scheme = CANDIDATES[verdict]
    return {
        "scheme": scheme,
        "registered": "smollm2-int8 version 3" if verdict == "PASS" else None,
        "command": f"mlflow run recipes/quantize -P scheme={scheme}",
        "run": "0f3c6f5d6e0c4c0bb1a5d2f1f5f3a1b2",
        "device": "cpu",
    }


def sixty_tasks() -> tuple[Decision, PairedScores]:
    """Sixty tasks with long names and sizes from 20 to 1,200, three of them damaged."""
    rng = np.random.default_rng(7)
    counts = {}
    for k in range(60):
        n = int(rng.integers(20, 1200))
        b, c = rng.binomial(n, (0.09 if k in (5, 20, 41) else 0.015, 0.015))
        name = f"leaderboard_mmlu_pro_{k:02d}_college_computer_science"
        counts[name] = (int(b), int(c), int(0.6 * n), n)
    paired = paired_counts(counts)
    advisory = {"leaderboard_mmlu_pro_1*": {"tier": "advisory"}}
    return decide(paired, GatePolicy.from_mapping({"tasks": advisory})), paired

"""Scores on the device against the CPU's: largest difference, changed decisions, both probes."""

from __future__ import annotations

from typing import Any

import numpy as np
import scoring

from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.evaluation.probes import probe_batch_invariance, probe_path_equivalence, spread

from . import Found
from .setting import Setting, encoded, tried

TITLE = "Scores against the CPU's"


def run(setting: Setting) -> Found:
    """A row for each scheme."""
    texts = [t for one in setting.texts(setting.pick(250, 4)).values() for t in one]
    for scheme in setting.schemes:
        yield TITLE, tried({"scheme": f"`{scheme}`"}, lambda s=scheme: _row(setting, s, texts))


def _row(setting: Setting, scheme: str, texts: list[list[tuple[str, str]]]) -> dict[str, Any]:
    here = setting.decoder(scheme)
    pairs, sizes = encoded(here, texts)
    prompts = spread([(*context, *rest) for context, rest in pairs])
    batches = probe_batch_invariance(here, prompts)
    paths = probe_path_equivalence(here, prompts) if here.can_reuse_prefixes else None
    found = {}
    for name, decoder in (
        ("here", here),
        ("CPU", OnnxDecoder(setting.model(scheme), device="cpu")),
    ):
        decoder.reuse_prefixes = paths is not None
        found[name] = np.array([score.logprob for score in decoder.score(pairs)])
        decoder.close()
    changed, ties = scoring.decisions(found["here"], found["CPU"], sizes)
    tokens = np.array([len(rest) for _, rest in pairs])
    apart = np.abs(found["here"] - found["CPU"])
    return {
        "items": len(sizes),
        "largest difference, nats": float(apart.max()),
        "per token, nats": float((apart / tokens).max()),
        "changed decisions": changed,
        "ties": ties,
        "in a batch, nats": batches.max_abs_difference,
        "by shared prefixes, nats": paths.max_abs_difference if paths else None,
    }

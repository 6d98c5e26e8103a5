"""Write the logs of ``mlflow-degrade demo`` from two runs of the recipe.

    mlflow run recipes/quantize -P scheme=int8-weight-only
    mlflow run recipes/quantize -P scheme=int4-weight-only
    python scripts/make_demo_logs.py fp32=RUN int8-weight-only=RUN int4-weight-only=RUN

The runs are those of the evaluations: a baseline, and the candidate of either. Kept is what a
verdict and a reader need: one metric, the texts and the categories. The digests of the texts, which
pairing does without, would be most of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_degrade import read_samples

FOLDER = Path(__file__).parents[1] / "mlflow_degrade" / "cli" / "demo_logs"
_LEFT_OUT = ("doc_hash", "prompt_hash", "target_hash", "cluster", "feature.prompt_tokens")


def main() -> None:
    for argument in sys.argv[1:]:
        name, _, run_id = argument.partition("=")
        table = read_samples(f"runs:/{run_id}").table
        table = table.filter(pc.equal(table["metric"], "acc"))
        table = table.drop_columns([c for c in _LEFT_OUT if c in table.column_names])
        table = table.sort_by([("task", "ascending"), ("doc_id", "ascending")])
        path = FOLDER / f"{name}.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=19)
        print(f"{path}: {table.num_rows} samples, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

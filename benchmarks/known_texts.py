"""How long a later model takes for texts that an earlier one wrote, beside writing all of them.

    python benchmarks/known_texts.py --scheme fp16 --scheme int8-weight-only

The export of the starter model continues beginnings of its own questions, alone and after four
examples. Then each scheme answers by turns with these texts at hand, and without. Prints how far
its reading is from its writing, how many texts were read and kept, how many of all are the same
when it writes them, and the ratio of the medians of the seconds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from measurements import as_script, record

if TYPE_CHECKING:
    from mlflow_degrade.evaluation.backend import OnnxLM
    from mlflow_degrade.evaluation.known_texts import KnownTexts


@click.command(help=__doc__)
@click.option("--scheme", "schemes", multiple=True, default=("fp16", "int8-weight-only"))
@click.option("--repeats", default=3, show_default=True, help="Rounds, each of both ways.")
@click.option("--count", default=192, show_default=True, help="Texts.")
@click.option("--tokens", "lengths", multiple=True, default=(8, 32), type=int)
def main(schemes: tuple[str, ...], repeats: int, count: int, lengths: tuple[int, ...]) -> None:
    from mlflow_degrade.evaluation.backend import OnnxLM
    from mlflow_degrade.evaluation.known_texts import KnownTexts
    from mlflow_degrade.optimize.export import export_onnx
    from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
    from mlflow_degrade.optimize.schemes import apply_scheme
    from mlflow_degrade.optimize.source.resolve import resolve_model

    base = optimize_graph(export_onnx(resolve_model("starter")))
    first = OnnxLM(str(base), path="shared-prefix")
    others = {name: OnnxLM(str(apply_scheme(base, name)), path="shared-prefix") for name in schemes}
    texts = _texts(count)
    examples = "\n".join(texts[-4:]) + "\n"
    with tempfile.TemporaryDirectory() as scratch:
        for most in lengths:
            for shots, begin in ((0, ""), (4, examples)):
                place = Path(scratch) / f"{most}-{shots}.json"
                asked = [begin + text for text in texts]
                _answer(first, asked, most, known := KnownTexts(place))
                known.save()
                for name, model in others.items():
                    _compare(f"{name}, {most} tokens, {shots} examples", model, asked, most,
                             place, repeats)  # fmt: skip


def _compare(
    what: str, model: OnnxLM, asked: list[str], most: int, place: Path, repeats: int
) -> None:
    from mlflow_degrade.evaluation.known_texts import KnownTexts

    seconds: dict[bool, list[float]] = {True: [], False: []}
    answers: dict[bool, list[str]] = {}
    found: dict[str, Any] = {}
    for number in range(repeats):
        for reads in (True, False) if number % 2 else (False, True):
            known = KnownTexts(place) if reads else None
            begun = time.perf_counter()
            answers[reads] = _answer(model, asked, most, known)
            seconds[reads].append(time.perf_counter() - begun)
            if known is not None:
                found = known.counted()
    ratio = statistics.median(seconds[True]) / statistics.median(seconds[False])
    same = sum(one == other for one, other in zip(*answers.values(), strict=True))
    click.echo(
        f"{what:42} apart {found['difference']:.2g} nats, read {found['read']}, kept "
        f"{found['kept']}, same {same} of {len(asked)}, {ratio:.2f} of the time"
    )
    record(f"{what}, time", ratio, "of writing all")


def _answer(model: OnnxLM, asked: list[str], most: int, known: KnownTexts | None) -> list[str]:
    from lm_eval.api.instance import Instance

    how: dict[str, Any] = {"until": ["\n\n"], "max_gen_toks": most}
    model.known = known
    return model.generate_until(
        [Instance("generate_until", {}, (text, how), i) for i, text in enumerate(asked)]
    )


def _texts(count: int) -> list[str]:
    """Questions of the starter suite, as many of each task."""
    from mlflow_degrade.evaluation.starter import loader

    folder = Path(loader.__file__).parent / "items"
    tasks = [loader.read_items(file.name.split(".")[0]) for file in sorted(folder.glob("*.gz"))]
    each = -(-count // len(tasks))
    return [item["question"] for items in tasks for item in items[:each]][:count]


if __name__ == "__main__":
    as_script(main)

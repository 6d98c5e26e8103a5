"""The command line of recipes/quantize."""

from __future__ import annotations

from pathlib import Path

import click

from ..core.errors import InputError
from ..core.prompting import Prompting
from ..core.question_names import COLUMNS_HELP, DEFAULT_TOKENS, TASKS_HELP, TOKENS_HELP
from ..decision.policy import GatePolicy
from ..engine.providers import DEVICE_HELP
from ..evaluation.suite import DEFAULT_LIMIT
from ..optimize.schemes import SCHEME_PLUGINS, SCHEMES
from ..stats._combination_rules import DEFAULT_RULE, rule_names
from ..workflows.quantize import DEFAULT_SCHEME, QuantizeOptions, quantize_and_gate
from .recipe_options import (
    MODEL_HELP,
    RECIPE_HELP,
    SETTINGS,
    SIGNING_KEY_HELP,
    build,
    caller_path,
    caller_tasks,
    flag,
    named_recipe,
    number,
    one_message,
    prompting_options,
)

_HELP = """Quantize a model and register it only when it is not worse.

\b
Examples:
  mlflow run recipes/quantize
  mlflow run recipes/quantize -P scheme=int4-weight-only -P limit=500
  mlflow run recipes/quantize -P recipe=int4-weight-only-gptq
  mlflow run recipes/quantize -P tasks=mine.csv -P columns=question=Frage,answer=Antwort
  mlflow run recipes/quantize -P model=org/name -P recipe=./my-recipe.yaml -P tasks=arc_easy

The candidate is what the recipe makes, the baseline what it makes without its pass 'quantize'.
"""


_RULE: str = QuantizeOptions.model_fields["policy"].default.rule


@click.command(help=_HELP, context_settings=SETTINGS)
@click.option("--model", default="starter", help=MODEL_HELP)
@click.option(
    "--scheme",
    default=DEFAULT_SCHEME,
    help=f"What to do to the candidate: {', '.join((*SCHEMES, *SCHEME_PLUGINS.names))}, or "
    "simulated-<format>.",
)
@click.option("--recipe", default="", help=f"Instead of a scheme: {RECIPE_HELP}")
@click.option("--tasks", default="auto", help=f"{TASKS_HELP}, comma-separated.")
@click.option("--include-path", default="", help="Directory with task files of your own.")
@click.option("--columns", default="", help=COLUMNS_HELP)
@click.option("--max-gen-toks", default=str(DEFAULT_TOKENS), help=TOKENS_HELP)
@click.option("--limit", default=str(DEFAULT_LIMIT), help="Samples per task; 0 takes all.")
@click.option("--alpha", default="0.05", help="One-sided significance level.")
@click.option("--margin-pp", default="2.0", help="Largest acceptable drop, percentage points.")
@click.option(
    "--aggregation",
    default=DEFAULT_RULE,
    help=f"How the tasks become one decision: {', '.join(rule_names())}.",
)
@click.option("--rule", default=_RULE, help="non_inferiority or no_degradation.")
@click.option("--policy", default="", help="Policy file instead of the four options above.")
@click.option("--register-as", default="auto", help="Registry name on PASS; none registers not.")
@click.option("--baseline-model", default="", help="Another baseline than the export.")
@click.option("--device", default="auto", help=f"{DEVICE_HELP}.")
@click.option("--force", default="false", help="true takes a scheme that is refused there.")
@click.option("--batch-size", default="auto", help="auto, or sequences per batch.")
@click.option("--num-fewshot", default="", help="Few-shot examples per prompt.")
@prompting_options
@click.option("--seed", default="0", help="Of the random samples.")
@click.option("--fresh", default="false", help="true evaluates again.")
@click.option("--signing-key", default="", help=SIGNING_KEY_HELP)
@click.option("--min-quantized-share", default="", help="Refuse a scheme that quantizes less.")
@click.option("--strict", default="false", help="true exits 1 on FAIL, 2 on INCONCLUSIVE.")
@click.pass_obj
def main(presets: Path | None, /, **given: str) -> None:
    with one_message():
        strict = flag("strict", given.pop("strict"))
        outcome = quantize_and_gate(_options(given, presets))
    if strict:
        raise SystemExit(outcome.decision.exit_code)


def _options(given: dict[str, str], presets: Path | None) -> QuantizeOptions:
    limit = number("limit", given["limit"], int)
    if limit < 0:
        raise InputError(f"parameter limit = {limit}: give samples per task, or 0 for all of them.")
    batch, shots = given["batch_size"], given["num_fewshot"]
    least = given["min_quantized_share"]
    include_path = caller_path(given["include_path"])
    return build(
        QuantizeOptions,
        {
            "model": caller_path(given["model"]),
            "scheme": given["scheme"],
            "recipe": named_recipe(given["recipe"], presets) if given["recipe"] else None,
            "tasks": caller_tasks(given["tasks"]),
            "columns": given["columns"],
            "max_gen_toks": number("max_gen_toks", given["max_gen_toks"], int),
            "include_path": include_path or None,
            "limit": limit or None,
            "policy": _policy(given),
            "register_as": None if given["register_as"] in ("", "none") else given["register_as"],
            "baseline_model": caller_path(given["baseline_model"]) or None,
            "device": given["device"],
            "force": flag("force", given["force"]),
            "batch_size": batch if batch == "auto" else number("batch_size", batch, int),
            "num_fewshot": number("num_fewshot", shots, int) if shots else None,
            **{name: given[name] for name in Prompting.model_fields},
            "seed": number("seed", given["seed"], int),
            "fresh": flag("fresh", given["fresh"]),
            "signing_key": caller_path(given["signing_key"]) or None,
            "min_quantized_share": number("min_quantized_share", least, float) if least else None,
        },
    )


def _policy(given: dict[str, str]) -> GatePolicy:
    if given["policy"]:
        return GatePolicy.from_yaml(caller_path(given["policy"]))
    return GatePolicy.from_mapping(
        {
            "rule": given["rule"],
            "alpha": number("alpha", given["alpha"], float),
            "margin_pp": number("margin_pp", given["margin_pp"], float),
            "aggregation": given["aggregation"],
        },
        source="parameters",
    )


if __name__ == "__main__":
    main()

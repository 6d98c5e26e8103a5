"""The quantize recipe from Python: the same steps, one call, and the numbers at hand.

python examples/quantize_from_python.py --scheme int4-weight-only --limit 50
"""

import click

from mlflow_degrade import GatePolicy, QuantizeOptions, quantize_and_gate


@click.command()
@click.option("--model", default="starter", show_default=True)
@click.option("--scheme", default="int8-weight-only", show_default=True)
@click.option("--limit", default=220, show_default=True, help="Samples per task.")
@click.option("--register-as", default=None, help="Registry name on PASS.")
def main(model: str, scheme: str, limit: int, register_as: str | None) -> None:
    """Quantize MODEL and say whether it is worse."""
    outcome = quantize_and_gate(
        QuantizeOptions(
            model=model,
            scheme=scheme,
            tasks=("starter",),
            limit=limit,
            register_as=register_as,
            policy=GatePolicy(rule="non_inferiority", margin_pp=2.0, alpha=0.05),
        )
    )
    decision = outcome.decision
    print(f"{decision.verdict.value}: {decision.reasons[0]}")
    for task in decision.tasks:
        low, high = 100 * task.interval.low, 100 * task.interval.high
        print(f"  {task.task:24} {100 * task.delta:+6.2f} pp  [{low:+.2f}, {high:+.2f}]")
    raise SystemExit(decision.exit_code)


if __name__ == "__main__":
    main()

"""The command line of recipes/gate; it ends with the verdict's exit code."""

from __future__ import annotations

import click

from ..errors import UnknownNameError
from ..evaluation.suite import DEFAULT_LIMIT
from ..policy import GatePolicy
from ..runtime.providers import DEVICE_HELP, DEVICES
from .command import (
    SETTINGS,
    SIGNING_KEY_HELP,
    caller_path,
    flag,
    joined_run_id,
    number,
    one_message,
)


@click.command(context_settings=SETTINGS)
@click.option("--candidate", required=True, help="The model that wants in.")
@click.option("--baseline", required=True, help="The model it must not fall behind.")
@click.option("--policy", default="", help="Policy file; empty is the default policy.")
@click.option("--register-as", default="auto", help="Registered model; none registers nothing.")
@click.option("--alias", default="", help="Alias to point to a version that passes.")
@click.option("--tasks", default="", help="lm-eval tasks where no evaluation of both is logged.")
@click.option("--include-path", default="", help="Directory with task files of your own.")
@click.option("--limit", default=str(DEFAULT_LIMIT), help="Samples per task; 0 takes all.")
@click.option("--seed", default="0", help="Of the random samples.")
@click.option("--device", default="auto", help=f"{DEVICE_HELP}.")
@click.option("--signing-key", default="", help=SIGNING_KEY_HELP)
@click.option("--fresh", default="false", help="true evaluates both again.")
def main(**given: str) -> None:
    """Compare two models in MLflow, and promote the candidate only when it passes."""
    with one_message():
        code = _run(given)
    raise SystemExit(code)


def _run(given: dict[str, str]) -> int:
    from ..cli.gate import outcome_lines
    from ..report.terminal import console, decision_view
    from ..tracking.connection import require_tracking_server
    from ..tracking.promotion import promote
    from ..tracking.runs import terminate_gracefully, tracked_run

    if given["device"] not in DEVICES:
        raise UnknownNameError("device", given["device"], DEVICES)
    policy = GatePolicy()
    if given["policy"]:
        policy = GatePolicy.from_yaml(caller_path(given["policy"]))
    tasks = [name.strip() for name in given["tasks"].split(",") if name.strip()]
    questions = {
        "tasks": tasks,
        "include_path": caller_path(given["include_path"]) or None,
        "limit": number("limit", given["limit"], int) or None,
        "seed": number("seed", given["seed"], int),
    }
    register_as = given["register_as"]
    fresh = flag("fresh", given["fresh"])
    require_tracking_server()
    name = f"gate {given['candidate']}"
    with terminate_gracefully(), tracked_run(name, run_id=joined_run_id()):
        done = promote(
            given["candidate"],
            given["baseline"],
            policy,
            register_as=None if register_as in ("", "none") else register_as,
            alias=given["alias"] or None,
            questions=questions if tasks else None,
            device=given["device"],
            fresh=fresh,
            signing_key=caller_path(given["signing_key"]) or None,
        )
        out = console()
        out.print(decision_view(done.decision, done.paired))
        for line in outcome_lines(done):
            out.print(line, markup=False)
    return done.decision.exit_code


if __name__ == "__main__":
    main()

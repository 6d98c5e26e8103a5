"""The command line of recipes/gate; it ends with the verdict's exit code."""

from __future__ import annotations

import click

from ..core.errors import InputError, UnknownNameError
from ..core.prompting import Prompting
from ..core.question_names import COLUMNS_HELP, DEFAULT_TOKENS, TASKS_HELP, TOKENS_HELP
from ..decision.policy import GatePolicy
from ..engine.providers import DEVICE_HELP, DEVICES
from ..evaluation.suite import DEFAULT_LIMIT
from .recipe_options import (
    SETTINGS,
    SIGNING_KEY_HELP,
    caller_path,
    caller_tasks,
    flag,
    number,
    one_message,
    prompting_options,
)


@click.command(context_settings=SETTINGS)
@click.option("--candidate", required=True, help="The model that wants in.")
@click.option("--baseline", required=True, help="The model it must not fall behind.")
@click.option("--policy", default="", help="Policy file; empty is the default policy.")
@click.option("--register-as", default="auto", help="Registered model; none registers nothing.")
@click.option("--alias", default="", help="Alias to point to a version that passes.")
@click.option("--tasks", default="", help=f"{TASKS_HELP}, where no evaluation is logged.")
@click.option("--include-path", default="", help="Directory with task files of your own.")
@click.option("--columns", default="", help=COLUMNS_HELP)
@click.option("--max-gen-toks", default=str(DEFAULT_TOKENS), help=TOKENS_HELP)
@click.option("--limit", default=str(DEFAULT_LIMIT), help="Samples per task; 0 takes all.")
@prompting_options
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
    from ..registry.promotion import promote
    from ..report.terminal import console, decision_view
    from ..tracking.connection import require_tracking_server
    from ..tracking.runs import joined_run_id, terminate_gracefully, tracked_run
    from ..tracking.views import where_to_look
    from .gate import outcome_lines

    if given["device"] not in DEVICES:
        raise UnknownNameError("device", given["device"], DEVICES)
    policy = GatePolicy()
    if given["policy"]:
        policy = GatePolicy.from_yaml(caller_path(given["policy"]))
    tasks = caller_tasks(given["tasks"])
    asked = Prompting.read(given).stated()
    questions = {
        "tasks": tasks,
        "include_path": caller_path(given["include_path"]) or None,
        "limit": number("limit", given["limit"], int) or None,
        "seed": number("seed", given["seed"], int),
        "columns": given["columns"],
        "max_gen_toks": number("max_gen_toks", given["max_gen_toks"], int),
        **asked,
    }
    if asked and not tasks:
        raise InputError(
            f"{', '.join(asked)}: that is how tasks are asked; name the tasks as well, or put it "
            "into the policy."
        )
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
        for line in (*outcome_lines(done), *where_to_look(done.run_id)):
            out.print(line, markup=False, soft_wrap=True)
    return done.decision.exit_code


if __name__ == "__main__":
    main()

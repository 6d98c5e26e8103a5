"""The command ``mlflow-degrade``.

Each command lives in a module of its own, which is imported when it is called: asking for help
costs no more than importing click.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from ..core.errors import DegradeError, UnknownNameError, redact
from ..core.progress import VERBOSE
from ..tracking.runs import Terminated, terminate_gracefully

#: Exit codes besides those of a verdict (0 PASS, 1 FAIL, 2 INCONCLUSIVE).
INVALID_INPUT, INTERNAL_ERROR, INTERRUPTED, TERMINATED = 3, 4, 130, 143

#: Command -> module and function, and what it is for. One line adds a command.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "assist": (
        "mlflow_degrade.cli.assist:assist",
        "Say whether assisted generation keeps texts, and what it saves.",
    ),
    "bench": ("mlflow_degrade.cli.bench:bench", "Measure speed, memory and size of models."),
    "candidates": (
        "mlflow_degrade.cli.candidates:candidates",
        "List what was decided on the candidates of a baseline.",
    ),
    "compare": ("mlflow_degrade.cli.compare:compare", "Decide whether a candidate is worse."),
    "demo": ("mlflow_degrade.cli.demo:demo", "Decide on logs that come with the package."),
    "evaluate": ("mlflow_degrade.cli.evaluate:evaluate", "Run lm-eval and log to MLflow."),
    "evidence": (
        "mlflow_degrade.cli.evidence:evidence",
        "Export evidence to a file, and verify such a file.",
    ),
    "export": ("mlflow_degrade.cli.recipes:export", "Export a model to ONNX and log it."),
    "gate": ("mlflow_degrade.cli.gate:gate", "Promote a model in MLflow when it passes."),
    "log-lm-eval": (
        "mlflow_degrade.cli.log_lm_eval:log_lm_eval",
        "Put lm-eval's output into MLflow.",
    ),
    "noise": (
        "mlflow_degrade.cli.noise:noise",
        "Say whether a model answers alike on two machines.",
    ),
    "optimize": (
        "mlflow_degrade.cli.recipes:optimize",
        "Apply a recipe to a model and log it; nothing is judged.",
    ),
    "placement": (
        "mlflow_degrade.cli.node_assignment:placement",
        "Show which nodes run on which provider.",
    ),
    "plan": ("mlflow_degrade.cli.plan:plan", "How many samples, and what they can detect."),
    "quantize": (
        "mlflow_degrade.cli.recipes:quantize",
        "Quantize a model; register it only when it is not worse.",
    ),
    "search": (
        "mlflow_degrade.cli.recipes:search",
        "Find the cheapest model that is not worse, and register it.",
    ),
    "sensitivity": (
        "mlflow_degrade.cli.sensitivity:sensitivity",
        "Show which layers a scheme hurts.",
    ),
    "verify": (
        "mlflow_degrade.cli.verify:verify",
        "Compute a registered version's verdict again.",
    ),
    "watch": (
        "mlflow_degrade.cli.watch:watch",
        "Say from traces whether the approved model is served.",
    ),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        module, function = COMMANDS[name][0].split(":")
        command: click.Command = getattr(import_module(module), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UnknownNameError("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
)
@click.version_option(package_name="mlflow-degrade")
@click.option("--verbose", is_flag=True, help="Say as well what the engine found about itself.")
def cli(verbose: bool) -> None:
    """Ship the fast model only when it is not worse.

    Paired significance tests on the per-sample scores of a baseline and a candidate, from logs
    that already exist or from MLflow runs.

    Exit codes: 0 PASS, 1 FAIL, 2 INCONCLUSIVE, 3 invalid input, 4 an error in mlflow-degrade.
    """
    if verbose:
        os.environ[VERBOSE] = "1"


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become one message.

    Parameters
    ----------
    args : sequence of str, optional
        Arguments; those of the process by default.
    """
    # MLflow draws a bar for every small file it reads, and prints the address of every run on
    # standard output, which belongs to the results.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        with terminate_gracefully():
            # click would end the process with 2, which here means INCONCLUSIVE.
            code: Any = cli.main(args=args, prog_name="mlflow-degrade", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return INVALID_INPUT
    except DegradeError as error:
        _say(f"error: {error}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return INTERRUPTED
    except Terminated:
        _say("terminated")
        return TERMINATED
    except BrokenPipeError:
        # Whoever read the output has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # noqa: BLE001  the exit code 1 of Python would read as FAIL
        _say(redact(traceback.format_exc()))
        _say("This is an error in mlflow-degrade, not a verdict.")
        return INTERNAL_ERROR
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the command."""
    sys.exit(run())


def _say(text: str) -> None:
    click.echo(text, err=True)

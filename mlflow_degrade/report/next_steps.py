"""What to do after a verdict, as commands to paste: the same on terminal, note and report."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..core import numbers
from ..core.errors import redact
from ..core.remote_files import shown_address
from ..decision.requirements import decisive, plan_cost
from ..decision.results import Decision, RequirementResult, Verdict
from .content import Provenance

_GENTLER = (
    (re.compile("int[234]"), "int8-weight-only"),
    (re.compile("int8-weight-only"), "fp16"),
    (re.compile("int8"), "int8-weight-only"),
)
_RECIPE = "mlflow run "
_TASKS_NAMED = 12
# Enough that a second look is worth its time, where nothing says how many there must be.
_GROWTH = 4


@dataclass(frozen=True)
class Command:
    """A command line that was given, so that the next one can be written out in full.

    Examples
    --------
    >>> gate = Command("mlflow-degrade gate", options={"candidate": "runs:/1f"})
    >>> gate.changed(limit=500).text
    'mlflow-degrade gate --candidate runs:/1f --limit 500'
    >>> Command("mlflow run recipes/quantize").changed(scheme="fp16").text
    'mlflow run recipes/quantize -P scheme=fp16'
    """

    start: str
    arguments: tuple[str, ...] = ()
    options: Mapping[str, object] = ()  # type: ignore[assignment]

    @classmethod
    def current(cls) -> Command | None:
        """The command of this process with what was given to it; None where Python code called."""
        import click

        context = click.get_current_context(silent=True)
        if context is None or context.info_name is None:
            return None
        if not context.command.callback.__module__.startswith(f"{__package__.split('.')[0]}."):
            return None  # somebody's own command, which calls this package
        options: dict[str, object] = {}
        arguments: list[str] = []
        for parameter in context.command.params:
            name = str(parameter.name)
            value = context.params.get(name)
            source = context.get_parameter_source(name)
            if isinstance(parameter, click.Argument):
                given = value if isinstance(value, tuple) else (value,)
                arguments += [shown_address(str(each)) for each in given if each is not None]
            elif (
                source is not None
                and source.name not in ("DEFAULT", "DEFAULT_MAP")
                and value != parameter.get_default(context)
                and value not in (None, "", ())
            ):
                off = value is False and parameter.secondary_opts
                # Parameters of functions may have other names than what is typed.
                typed = max(parameter.secondary_opts if off else parameter.opts, key=len)
                shown = shown_address(value) if isinstance(value, str) else bool(off) or value
                options[typed.lstrip("-").replace("-", "_")] = shown
        # The entry point of an MLflow project runs in the project's folder.
        project = context.info_name.endswith(".py")
        start = _RECIPE + "/".join(Path.cwd().parts[-2:]) if project else context.command_path
        return cls(start, tuple(arguments), options)

    @property
    def takes(self) -> str:
        """What it is: ``quantize``, ``gate``, ``compare``."""
        return re.split(r"[ /]", self.start)[-1]

    def changed(self, **options: object) -> Command:
        """With other options; None leaves one out."""
        kept = {name: value for name, value in dict(self.options).items() if name not in options}
        new = {name: value for name, value in options.items() if value is not None}
        return replace(self, options={**kept, **new})

    @property
    def text(self) -> str:
        """As it is typed."""
        parts = [self.start, *map(shlex.quote, self.arguments)]
        for name, value in dict(self.options).items():
            for each in value if isinstance(value, tuple) else (value,):
                if self.start.startswith(_RECIPE):
                    parts.append(f"-P {name}={shlex.quote(str(each))}")
                else:
                    parts.append(f"--{name.replace('_', '-')}")
                    parts += [] if each is True else [shlex.quote(str(each))]
        return redact(" ".join(parts))

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class NextStep:
    """A sentence, and the line to type or to write in Python."""

    sentence: str
    line: str


_OTHERS = NextStep("See how other candidates did:", "mlflow-degrade candidates")


def next_steps(decision: Decision, provenance: Provenance | None = None) -> list[NextStep]:
    """What to do now, exactly; empty where nobody said what was run."""
    facts = provenance or {}
    command = facts.get("command")
    if not isinstance(command, Command):
        command = None
    if decision.verdict is Verdict.PASS:
        return list(_after_pass(facts, command))
    if command is None:
        return []
    if decision.verdict is Verdict.FAIL:
        return [_after_fail(command, facts.get("scheme"))]
    return [_after_inconclusive(decision, command)]


def next_lines(decision: Decision, provenance: Provenance | None = None) -> list[str]:
    """The same as lines of a terminal."""
    steps = next_steps(decision, provenance)
    return [line for step in steps for line in (step.sentence, f"  {step.line}")]


def gentler_scheme(scheme: str | None) -> str | None:
    """A scheme that changes a model less, where one is known."""
    for pattern, gentler in _GENTLER:
        if scheme and pattern.match(scheme):
            return gentler
    return None


def samples_per_task(decision: Decision) -> int:
    """How many samples of each task to ask for, so that there are as many as are needed in all."""
    gating = sum(task.tier == "gating" for task in decision.tasks)
    total, needed = decision.aggregate.n, decision.power.samples_needed
    if decision.sequential is not None:
        total = decision.sequential.total
    wanted = needed if needed is not None and needed > total else _GROWTH * total
    wanted = max(wanted, decision.policy.min_samples)
    asked = [each for each in decisive(decision) if each.kind != "cost"]
    if asked:
        # A floor is about one task; the drop is about all of them.
        wanted = max(
            (r.needed or _GROWTH * r.n) * (gating if r.kind == "floor" else 1) for r in asked
        )
    return _round_up(math.ceil(wanted / max(1, gating)))


def lines_to_serve(where: str, engine_files: str | None = None) -> tuple[str, str]:
    """How to load and to serve a model; `engine_files` says where those of another engine are."""
    if engine_files is None:
        load = f'model = mlflow.pyfunc.load_model("{where}")'
        return load, f"mlflow models serve -m {where} --env-manager local"
    start = "llama-server -m" if engine_files.endswith(".gguf") else "vllm serve"
    return f"mlflow artifacts download -u {where} -d model", f"{start} model/{engine_files}"


def _after_pass(facts: Provenance, command: Command | None) -> Iterable[NextStep]:
    version, target = facts.get("registered"), facts.get("target")
    where = version or target
    if where:
        load, serve = lines_to_serve(str(where), facts.get("engine_files"))
        yield NextStep("Load it:", load)
        yield NextStep("Serve it:", serve)
    if version:
        name, _, number = str(version).removeprefix("models:/").rpartition("/")
        client = "mlflow.MlflowClient()"
        yield NextStep(
            "Give it an alias, if the name has none yet:",
            f'{client}.set_registered_model_alias("{name}", "champion", "{number}")',
        )
        yield NextStep(
            "Or let it take the champion's place when it is no worse:",
            f"mlflow-degrade gate --candidate {version} --baseline models:/{name}@champion "
            "--alias champion",
        )
    elif command is not None and not target and command.takes in ("gate", "quantize", "search"):
        changes = {"register_as": "NAME"}
        if command.takes == "gate":
            changes["alias"] = "champion"
        yield NextStep("Register it under a name of yours:", command.changed(**changes).text)
    elif command is not None and command.takes == "compare":
        yield NextStep(
            "To let such a verdict move an alias, log both models in MLflow, and:",
            "mlflow-degrade gate --candidate runs:/<run id> --baseline models:/<name>@champion "
            "--alias champion",
        )


def _after_fail(command: Command, scheme: str | None) -> NextStep:
    gentler = gentler_scheme(scheme)
    if command.takes == "quantize" and gentler is not None:
        return NextStep(
            f"Try a gentler scheme, {gentler} instead of {scheme}:",
            command.changed(recipe=None, min_quantized_share=None, scheme=gentler).text,
        )
    if command.takes in ("quantize", "search"):
        return _OTHERS
    return NextStep("Read more of the samples that got worse:", command.changed(samples=20).text)


def _after_inconclusive(decision: Decision, command: Command) -> NextStep:
    if command.takes == "search":
        return _OTHERS  # it goes on with the next by itself
    costs = [each for each in decisive(decision) if each.kind == "cost"]
    if costs:
        return _measure(decision, costs, command)
    limit = samples_per_task(decision)
    said = f"Ask {numbers.count(limit)} samples of each task (limit is per task):"
    if command.takes == "quantize":
        return NextStep(said, command.changed(limit=limit).text)
    if command.takes == "gate":
        names = [task.task for task in decision.tasks]
        asked = dict(command.options).get("tasks")
        if asked is None:
            asked = ",".join(names) if len(names) <= _TASKS_NAMED else "TASKS"
        return NextStep(said, command.changed(tasks=asked, limit=limit).text)
    return NextStep(
        f"Log {numbers.count(limit)} samples of each task on both sides, and compare again:",
        command.text,
    )


def _measure(decision: Decision, costs: list[RequirementResult], command: Command) -> NextStep:
    """Measure what is not decided, longer where it was measured before."""
    if command.takes == "quantize":
        seconds = max((each.needed_seconds or 0.0 for each in costs), default=0.0)
        return NextStep(
            "Measure longer:",
            command.changed(cost_seconds=_round_up(math.ceil(seconds)) or 60).text,
        )
    plan = plan_cost(decision.policy, decision.alpha_attempt)
    for each in costs:
        field = "processes" if each.name == "memory_ratio" else "rounds"
        more = max(getattr(plan, field), _round_up(each.needed or 0))
        plan = plan._replace(**{field: more})
    return NextStep(
        "Measure both models side by side, and decide on that:",
        f"{plan.command} && {command.changed(cost='bench.json').text}",
    )


def _round_up(n: int) -> int:
    """Two digits are enough to say how many."""
    step: int = 10 ** max(1, len(str(n)) - 2)
    return -(-n // step) * step

"""Which files of an lm-eval output directory belong together: one model, one or several dates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import SampleSchemaError, UnknownNameError
from ...core.prompting import checked_gen_kwargs, parse_gen_kwargs
from ._reader import files_below, note, read_json

_DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
_SAMPLES = re.compile(rf"samples_(?P<task>.+)_(?P<date>{_DATE})\.jsonl(?:\.gz)?")
_RESULTS = re.compile(rf".+_(?P<date>{_DATE})\.json")
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
_SEED_NAME = re.compile(r"seed|run|rep|trial", re.IGNORECASE)
# What lm-eval replaces when it makes a directory of a model's name.
_NOT_IN_FOLDERS = re.compile(r"[\"<>:/|\\?*\[\]]+")


@dataclass(frozen=True)
class TaskFile:
    """The samples of one task from one call of lm-eval."""

    task: str
    date: str
    path: Path
    repeat: int


def sample_files(path: Path) -> list[Path]:
    """All files with samples at or below a path."""
    return files_below(path, lambda file: bool(_SAMPLES.fullmatch(file.name)))


def results_files(path: Path) -> dict[str, Path]:
    """Results files at or below a path, newest last, by their date."""
    dated = ((_RESULTS.fullmatch(file.name), file) for file in files_below(path))
    found = {match["date"]: file for match, file in dated if match}
    return dict(sorted(found.items()))


def choose(
    path: Path, files: list[Path], date: str | None, repeats: bool, model: str | None
) -> list[TaskFile]:
    """The files to read: of one model, and the latest of each task unless all are wanted."""
    if model is not None:
        files = _of_model(files, model)
    named = _models(files)
    names = sorted({name for _, name in named})
    folders = sorted({str(file.parent) for file in files})
    if len(names) > 1 or (len(folders) > 1 and names == [""]):
        raise SampleSchemaError(
            f"{path} holds samples of {max(len(names), len(folders))} models: {folders}. Name one "
            f"of these directories, or one of the models {names} with the option model (for one "
            "side with -b or -c)."
        )
    runs: dict[str, list[tuple[str, Path]]] = {}
    for file in files:
        match = _SAMPLES.fullmatch(file.name)
        if match and (date is None or match["date"].startswith(date)):
            runs.setdefault(match["task"], []).append((match["date"], file))
    if not runs:
        dates = sorted({m["date"] for f in files if (m := _SAMPLES.fullmatch(f.name))})
        raise SampleSchemaError(f"{path} has no samples of date {date!r}; it has {dates}.")
    chosen, passed_over, repeated = [], [], []
    for task, dated in sorted(runs.items()):
        dated.sort()
        own = {file.parent: when for when, file in dated}
        if len(own) > 1:
            if len(set(own.values())) < len(own) or not (repeats or _are_seeds(own)):
                raise SampleSchemaError(
                    f"{path} holds samples of {len(own)} models, or of one model several times: "
                    f"{sorted(map(str, own))}. Name one of these directories, or read all as "
                    "repeated runs of one model with repeats=true."
                )
            repeated.append(f"{task} ({len(dated)})")
        elif len(dated) > 1 and not repeats:
            passed_over.append(f"{task} ({len(dated) - 1})")
            dated = dated[-1:]
        chosen += [TaskFile(task, when, file, i) for i, (when, file) in enumerate(dated)]
    if repeated:
        note(
            f"{path} has runs of one model in several folders: {', '.join(repeated)}. They are "
            "read as repeated runs and averaged per sample; choose one by its folder or date=…"
        )
    if passed_over:
        note(
            f"{path} has several runs of {', '.join(passed_over)}: the latest of each is read. "
            "Choose one with date=…, or read all as repeated runs with repeats=true."
        )
    return chosen


def _are_seeds(folders: Mapping[Path, str]) -> bool:
    """Whether runs in several folders differ by their seeds, as lm-eval or their names say."""
    stated = []
    for folder, date in folders.items():
        results = results_files(folder).get(date)
        config = {} if results is None else read_json(results).get("config") or {}
        stated.append(tuple(str(config.get(name)) for name in _SEEDS))
    apart = [set(folder.parts) for folder in folders]
    common = set.intersection(*apart)
    named = all(any(_SEED_NAME.search(part) for part in parts - common) for parts in apart)
    return named or len(set(stated)) == len(stated)


def _models(files: list[Path]) -> list[tuple[Path, str]]:
    """Each file with the model its results name, or with its directory where there are none."""
    # The one model of a single directory may stay without a name.
    names: dict[tuple[Path, str], str] = {}
    for folder in {file.parent for file in files}:
        for date, path in results_files(folder).items():
            names[path.parent, date] = str(read_json(path).get("model_name") or folder.name)
    dates = ((file, _SAMPLES.fullmatch(file.name)) for file in files)
    return [
        (file, names.get((file.parent, match["date"] if match else ""), file.parent.name))
        for file, match in dates
    ]


def _of_model(files: list[Path], model: str) -> list[Path]:
    named = _models(files)
    folder = _NOT_IN_FOLDERS.sub("__", model)
    kept = [file for file, name in named if name == model or file.parent.name == folder]
    if not kept:
        raise UnknownNameError("model", model, {name for _, name in named})
    return kept


def results_of(files: list[TaskFile]) -> dict[str, dict[str, Any]]:
    """The results file of each date; samples of one date stem from one call of lm-eval."""
    wanted = {file.date for file in files}
    folders = sorted({file.path.parent for file in files})
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            match = _RESULTS.fullmatch(path.name)
            if match and match["date"] in wanted:
                found[match["date"]] = read_json(path)
    if wanted - found.keys():
        note(
            f"no results_*.json beside the samples of {sorted(wanted - found.keys())}: whether "
            "higher is better is taken from the metrics' names, task versions are unknown."
        )
    models = {json.dumps(identity(about), sort_keys=True) for about in found.values()}
    if len(models) > 1:
        raise SampleSchemaError(
            f"{', '.join(map(str, folders))} holds runs of different models or settings: "
            f"{sorted(models)}. Choose one with date=… ({sorted(wanted)}; for one side with -b or "
            "-c)."
        )
    return found


def prompting_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """How the model was asked, as far as results say; see `mlflow_degrade.core.prompting`."""
    config, found = about.get("config") or {}, {}
    if "chat_template_sha" in about:
        template = about["chat_template_sha"]
        turns = bool(template) and bool(about.get("fewshot_as_multiturn"))
        found = {"chat_template_sha": template, "fewshot_as_multiturn": turns}
        found["apply_chat_template"] = bool(template)
        found["system_instruction"] = about.get("system_instruction")
    if "gen_kwargs" in config:
        found["gen_kwargs"] = _gen_kwargs(config["gen_kwargs"])
    return found


def _gen_kwargs(stated: Any) -> Any:
    """Generation arguments under one name each; those of other engines as they are."""
    try:
        given = parse_gen_kwargs(stated) if isinstance(stated, str) and stated else stated or {}
        return checked_gen_kwargs(given) or None
    except ValueError:
        return stated


def identity(about: Mapping[str, Any]) -> dict[str, Any]:
    """What tells runs of different models or settings apart."""
    config = about.get("config") or {}
    return {
        "model": about.get("model_name"),
        "source": about.get("model_source"),
        "args": config.get("model_args"),
        "sha": config.get("model_sha"),
        "chat_template": about.get("chat_template_sha"),
        "limit": config.get("limit"),
    }

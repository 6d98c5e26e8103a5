"""The job behind ``mlflow-degrade watch``: traces -> scores of two models -> the watch's run."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError, RegistryError, SameModelError, TrackingError
from ..decision.results import Verdict
from ..decision.watch import ScoredTrace, Watch, WatchPolicy
from ..tracking.traffic import ServedText, Traffic, find_experiment, read_traffic
from ..tracking.watches import (
    KeptWatch,
    identity_tags,
    keep,
    newest_watch,
    watch_key,
)

if TYPE_CHECKING:
    from ..engine.decoder import OnnxDecoder

# Traces that are logged after later ones are still found for so long.
_LATE_MS = 7 * 24 * 3600 * 1000
_KINDS = {"champion": "the champion", "challenger": "the challenger", "policy": "the policy"}


@dataclass(frozen=True)
class WatchedModel:
    """One of the two models, and where it is in the registry."""

    reference: str
    folder: Path
    digest: str
    registered: tuple[str, str] | None = None
    model_id: str | None = None
    created_ms: int = 0
    prompting: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is called: name and version, or the reference."""
        return self.reference if self.registered is None else "models:/" + "/".join(self.registered)


@dataclass(frozen=True)
class Watched:
    """What one call did, and where the watch stands."""

    watch: Watch
    run_id: str
    champion: WatchedModel
    challenger: WatchedModel | None
    added: int
    left_out: Mapping[str, int]
    notes: tuple[str, ...] = ()
    moved: str | None = None  # What was done about an alias.

    @property
    def verdict(self) -> Verdict:
        """FAIL: roll back."""
        return self.watch.verdict

    def as_dict(self) -> dict[str, Any]:
        """For JSON: no text of a trace, and no id."""
        watch = self.watch
        return {
            "verdict": self.verdict.value,
            "run_id": self.run_id,
            "champion": {"model": self.champion.title, "digest": self.champion.digest},
            "challenger": None
            if self.challenger is None
            else {"model": self.challenger.title, "digest": self.challenger.digest},
            "policy": asdict(watch.policy),
            "traces": watch.traces,
            "added": self.added,
            "repeated": watch.repeated,
            "left_out": dict(self.left_out),
            "log_e": watch.log_e,
            "order": watch.order,
            "alarm": None if watch.alarm is None else asdict(watch.alarm),
            "weeks": [asdict(week) for week in watch.weeks],
            "notes": list(self.notes),
            "rolled_back": self.moved,
        }


def watch(
    champion: str,
    challenger: str | None,
    policy: WatchPolicy,
    *,
    experiment: str,
    condition: str | None = None,
    since_ms: int | None = None,
    most: int | None = None,
    anew: bool = False,
    device: str = "auto",
    roll_back: str | None = None,
    advance: Callable[[int, int], None] = lambda _more, _done: None,
) -> Watched:
    """Go on with the watch of an experiment's traces, or begin one."""
    import mlflow

    from ..tracking.connection import require_tracking_server
    from ..tracking.runs import tracked_run

    require_tracking_server(create=False)
    experiment_id = find_experiment(experiment)
    models = _model(champion), None if challenger is None else _model(challenger)
    if models[1] is not None and models[0].digest == models[1].digest:
        raise SameModelError(
            f"{champion} and {challenger} are the same model: its texts cannot be told apart. Name "
            "as challenger the model that might be served instead."
        )
    if roll_back is not None and models[0].registered is None:
        raise InputError(
            f"--roll-back {roll_back} needs a champion in the registry, and {champion} is none: "
            "name it as models:/<name>/<version>."
        )
    key = watch_key(experiment_id, condition)
    identity = {
        "champion": models[0].digest,
        "challenger": None if models[1] is None else models[1].digest,
        "policy": asdict(policy),
    }
    kept, begun = newest_watch(experiment_id, key, identity)
    state, run_id, notes = _begun(kept, identity, policy, models, since_ms, anew=anew)
    if state.alarm is not None and kept is not None:
        moved = None if roll_back is None else _roll_back(roll_back, models[0])
        return Watched(state, kept.run_id, *models, 0, {}, tuple(notes), moved)
    traffic = read_traffic(
        experiment_id,
        lambda trace, at: policy.draws(trace) and state.wants(_digest(trace), at),
        since_ms=max(state.since_ms, state.latest_ms - _LATE_MS),
        condition=condition,
        most=most,
    )
    _require_traffic(traffic, state, experiment, condition)
    _require_own(traffic, models)
    before, added, left_out = state.traces, 0, Counter(traffic.left_out)
    tags = identity_tags(key, identity)
    mlflow.set_experiment(experiment_id=experiment_id)
    name = f"watch {models[0].title}"
    replaced = None if kept is None or run_id != kept.run_id else kept.state
    with tracked_run(name, run_id=run_id or begun, tags=tags) as run:
        if replaced is None:
            mlflow.log_params(
                {
                    "champion": models[0].title,
                    "challenger": "none" if models[1] is None else models[1].title,
                    "filter": condition or "none",
                    **asdict(policy),
                }
            )
        scored = _scored(traffic.served, models, policy, device, left_out, advance)
        state.take(scored)
        added = state.traces - before
        keep(str(run.info.run_id), state, replaced)
    moved = None
    if state.alarm is not None and roll_back is not None:
        moved = _roll_back(roll_back, models[0])
    return Watched(state, str(run.info.run_id), *models, added, left_out, tuple(notes), moved)


def _begun(
    kept: KeptWatch | None,
    identity: Mapping[str, Any],
    policy: WatchPolicy,
    models: tuple[WatchedModel, WatchedModel | None],
    since_ms: int | None,
    *,
    anew: bool,
) -> tuple[Watch, str | None, list[str]]:
    """The watch to go on with, its run, and what to say about that."""
    challenged, now = models[1] is not None, int(time.time() * 1000)
    since = models[0].created_ms if since_ms is None else since_ms
    if kept is None:
        return Watch(policy, challenged, since_ms=since), None, []
    changed = [name for what, name in _KINDS.items() if kept.identity.get(what) != identity[what]]
    if kept.watch.over(now):
        said = "the year of the watch is over: another begins, with an alpha of its own"
        return (
            Watch(policy, challenged, since_ms=now if since_ms is None else since_ms),
            None,
            [said],
        )
    if not anew and not changed:
        return kept.watch, kept.run_id, []
    why = "it was asked for" if anew and not changed else f"{' and '.join(changed)} changed"
    # Texts from before may be of the model that was served then.
    start = now if since_ms is None else since_ms
    said = (
        f"{why}: another watch begins with traces from now on, in the same year and with what is "
        f"left of its alpha. The one in run {kept.run_id} ended with {kept.watch.verdict.value} "
        f"after {kept.watch.traces} traces."
    )
    if since_ms is not None:
        said = said.replace("traces from now on", "the traces since the time given")
    return kept.watch.renewed(policy, challenged=challenged, since_ms=start), None, [said]


def _require_traffic(
    traffic: Traffic, state: Watch, experiment: str, condition: str | None
) -> None:
    if traffic.served or state.traces or state.year_ms is not None:
        return
    where = f"experiment {experiment!r}" + (f" with {condition!r}" if condition else "")
    if not traffic.found:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.since_ms / 1000))
        raise TrackingError(
            f"there are no traces in {where}"
            + (f" since {since}" if state.since_ms else "")
            + ": log them with @mlflow.trace around the call that answers a prompt, or give an "
            "earlier --since or another --filter."
        )
    reasons = ", ".join(f"{count} {why}" for why, count in traffic.left_out.items())
    raise InputError(
        f"none of {traffic.found} traces in {where} can be scored"
        + (f" ({reasons})" if reasons else " (none was drawn, or all are too old)")
        + '. A trace needs inputs such as {"prompt": "…"} or {"messages": […]}, and a text as its '
        "output; a data frame is logged as a table that is cut, so trace a function of texts."
    )


def _require_own(traffic: Traffic, models: tuple[WatchedModel, WatchedModel | None]) -> None:
    """Refuse traces that say they are of a third logged model: their texts prove nothing here."""
    known = {model.model_id for model in models if model is not None} - {None}
    if not known:
        return
    others = Counter(
        served.model_id for served in traffic.served
        if served.model_id is not None and served.model_id not in known
    )  # fmt: skip
    if others:
        listed = ", ".join(f"{count} of {model}" for model, count in others.most_common(3))
        raise InputError(
            f"of {len(traffic.served)} traces some say that another logged model wrote them "
            f"({listed}), neither the champion nor the challenger. If they are another "
            "application's, choose with --filter; if that model is what is served, it is not the "
            "champion: roll back, or name it as --challenger."
        )


def _scored(
    served: list[ServedText],
    models: tuple[WatchedModel, WatchedModel | None],
    policy: WatchPolicy,
    device: str,
    left_out: Counter[str],
    advance: Callable[[int, int], None],
) -> list[ScoredTrace]:
    """What both models say of each text that they can read."""
    from ..engine.decoder import OnnxDecoder
    from ..evaluation.teacher_forcing import (
        encoded,
        require_invariant,
        same_tokens,
        token_scores,
    )

    if not served:
        return []
    served = sorted(served, key=lambda one: (one.time_ms, one.trace_id))
    champion, challenger = models
    decoders = [OnnxDecoder(m.folder, device=device) for m in models if m is not None]
    if challenger is not None and not same_tokens(*decoders):
        raise InputError(
            f"{champion.reference} and {challenger.reference} have different tokenizers, so the "
            "tokens of a text cannot be compared one by one. Name a challenger with the "
            "champion's tokenizer, or none and a --tolerance."
        )
    prompts = [_prompt(one, decoders[0], champion, left_out) for one in served]
    known = [(one, p) for one, p in zip(served, prompts, strict=True) if p is not None]
    pairs = encoded(decoders[0], [(p, one.text) for one, p in known], policy.tokens)
    left_out["without a token of their own"] += sum(pair is None for pair in pairs)
    left_out += Counter()  # without zeros
    usable = [(one, p, pair) for (one, p), pair in zip(known, pairs, strict=True) if pair]
    if not usable:
        return []
    advance(len(usable) * len(decoders), 0)
    read = []
    for decoder in decoders:
        require_invariant(decoder, [pair for _, _, pair in usable])
        read.append(token_scores(decoder, [pair for _, _, pair in usable], lambda n: advance(0, n)))
        decoder.close()
    return [
        _trace(one, p, [scores[i] for scores in read], policy)
        for i, (one, p, _) in enumerate(usable)
    ]


def _prompt(
    one: ServedText, decoder: OnnxDecoder, champion: WatchedModel, left_out: Counter[str]
) -> str | None:
    from ..engine.conversation import check_messages, conversation_prompt

    if one.messages is None:
        return one.prompt
    try:
        check_messages(one.messages)
    except InputError:
        left_out["with messages that are no texts to be answered"] += 1
        return None
    tokenizer = decoder.encoder.tokenizer
    return conversation_prompt(tokenizer, one.messages, champion.folder, champion.prompting)


def _trace(one: ServedText, prompt: str, read: list[Any], policy: WatchPolicy) -> ScoredTrace:
    """What is kept of a trace: digests and counts."""
    own, *others = read
    pairs = (
        [(bool(a.is_greedy), bool(b.is_greedy)) for a, b in zip(own, *others, strict=True)]
        if others
        else []
    )
    return ScoredTrace(
        trace=_digest(one.trace_id),
        prompt=_digest(f"{policy.seed}:{prompt}"),
        time_ms=one.time_ms,
        tokens=len(own),
        differing=sum(not score.is_greedy for score in own),
        against=sum(b and not a for a, b in pairs),
        agreeing=sum(a and not b for a, b in pairs),
        champion_loglik=sum(score.logprob for score in own) / len(own),
        challenger_loglik=sum(s.logprob for s in others[0]) / len(own) if others else None,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _model(reference: str) -> WatchedModel:
    """A model directory, or a version whose files are brought here."""
    from mlflow import MlflowClient

    from ..engine.family import model_family
    from ..optimize.export import export_onnx
    from ..optimize.fusion.optimize_graph import optimize_graph
    from ..optimize.source.resolve import resolve_model
    from ..registry.references import find_subject

    registered, model_id, created = None, None, 0
    if reference.startswith("models:/"):
        registered = find_subject(reference).registered
    if registered is not None:
        version = MlflowClient().get_model_version(*registered)
        created = int(version.creation_timestamp)
        model_id = getattr(version, "model_id", None) or None
        reference = "models:/" + "/".join(registered)
    source = resolve_model(reference)
    folder = source.path.resolve()
    if source.layout != "onnx":
        folder = optimize_graph(export_onnx(source))
    if (family := model_family(folder)) != "decoder":
        raise InputError(f"{reference} is an {family}, which writes no texts: name a decoder.")
    return WatchedModel(
        reference, folder, source.digest, registered, model_id, created, _prompting(source.path)
    )


def _prompting(folder: Path) -> Mapping[str, Any]:
    """How a registered model asks its conversations; nothing for a plain directory."""
    import yaml

    for above in folder.parents[:3]:
        if (above / "MLmodel").is_file():
            stated = yaml.safe_load((above / "MLmodel").read_text(encoding="utf-8"))
            config = stated.get("flavors", {}).get("python_function", {}).get("config") or {}
            return dict(config.get("prompting") or {})
    return {}


def _roll_back(alias: str, champion: WatchedModel) -> str:
    """Point an alias to the champion again; say so where it does already."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name, version = champion.registered or ("", "")
    client = MlflowClient()
    try:
        now = client.get_registered_model(name).aliases.get(alias)
        if now is not None and str(now) == version:
            return (
                f"alias {alias} of {name} is at version {version} already, and what is served is "
                "not that version: start the server again."
            )
        client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        raise RegistryError(f"alias {alias} of {name} was not moved: {error}") from error
    was = "nowhere" if now is None else f"version {now}"
    return f"alias {alias} of {name} moved from {was} to version {version}"

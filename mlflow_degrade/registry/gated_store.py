"""MLflow registry stores that keep protected aliases and stages from unproven versions.

MLflow finds the builders below by the scheme of a registry URI: ``gated+sqlite:///mlflow.db`` is
``sqlite:///mlflow.db`` behind the gate, ``gated+https://host`` a remote registry seen through it.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, NoReturn

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from ..core.errors import DegradeError, PromotionRefusedError
from .gate_config import OVERRIDDEN_PREFIX, OVERRIDE_PREFIX, GateConfig, fold
from .references import versions_of

# The gate itself: may this version carry a protected alias or stage?

_SHORTEST_REASON = 10
_RECORDED_REASON = 2_000


class RefusedByGateError(PromotionRefusedError, MlflowException):
    """A refusal, typed for callers of this package and known to MLflow's server, which answers
    403."""

    def __init__(self, message: str, problems: Iterable[str] = ()) -> None:
        MlflowException.__init__(self, message, error_code=PERMISSION_DENIED)
        self.problems = tuple(problems)


class PromotionGate:
    """Decides on promotions and keeps the record of them."""

    def __init__(self, config: GateConfig, registry: Any, tracking_uri: str | None = None) -> None:
        self.config = config
        self._registry = registry
        self._tracking_uri = tracking_uri

    def check(self, name: str, version: Any, target: str, key: str) -> Any:
        """Return if the promotion may go on, and raise otherwise."""
        found = self._registry.get_model_version(name, str(version))
        entry = {"model": name, "version": str(found.version), "target": target, "user": user()}
        if self._is_prompt(found):
            return found
        problems, digests = self._problems(name, found.version)
        if not problems:
            self._record("promoted", entry | {"digests": digests})
            return found
        if not self._overridden(found, key, entry, problems, digests):
            self._record("refused", entry | {"problems": problems, "digests": digests})
            raise RefusedByGateError(_message(entry, problems), problems)
        return found

    def refuse(self, name: str, version: Any, target: str, problem: str) -> NoReturn:
        """Refuse something that no verdict would allow."""
        entry = {"model": name, "version": str(version), "target": target, "user": user()}
        self._record("refused", entry | {"problems": [problem]})
        raise RefusedByGateError(_message(entry, [problem]), [problem])

    def _problems(self, name: str, version: Any) -> tuple[list[str], dict[str, str]]:
        from .verification import verify_version

        try:
            found = verify_version(
                name,
                version,
                policy=self.config.policy,
                experiments=self.config.evidence_experiments,
                baselines=self.config.trusted_baselines,
                signers=self.config.signers,
                registry=self._registry,
                tracking_uri=self._tracking_uri,
            )
        except DegradeError as error:
            return [str(error)], {}
        return list(found.problems), dict(found.digests)

    def _is_prompt(self, found: Any) -> bool:
        """Whether the version belongs to a prompt, which has no bytes that could be loaded."""
        # The tag that MLflow goes by is set by whoever likes; a source that is MLflow's
        # placeholder in every version of the name cannot hide a model.
        from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS as PLACEHOLDERS

        if found.source not in PLACEHOLDERS:
            return False
        others = versions_of(self._registry, found.name)
        return all(other.source in PLACEHOLDERS for other in others)

    def _overridden(
        self,
        found: Any,
        key: str,
        entry: dict[str, str],
        problems: list[str],
        digests: dict[str, str],
    ) -> bool:
        from mlflow.entities.model_registry import ModelVersionTag

        make_tag: Any = ModelVersionTag
        reason = (found.tags.get(OVERRIDE_PREFIX + key) or "").strip()
        if not reason:
            return False
        if not self.config.allow_override:
            problems.append(f"tag {OVERRIDE_PREFIX}{key} is set, but this gate allows no overrides")
            return False
        if len(reason) < _SHORTEST_REASON:
            problems.append(
                f"the override's reason {reason!r} has {len(reason)} characters, a reason has at "
                f"least {_SHORTEST_REASON}"
            )
            return False
        who = entry["user"]
        if self.config.override_users and who not in self.config.override_users:
            problems.append(f"user {who!r} may not override this gate")
            return False
        record = entry | {"reason": reason, "problems": problems, "digests": digests}
        # First the record, then the deed: an override that is not written down does not happen.
        self._record("override", record, required=True)
        short = {
            "time": now(),
            "user": who,
            "reason": reason[:_RECORDED_REASON],
            "problems": len(problems),
            "model_digest": digests.get("model"),
        }
        version = str(found.version)
        tag = make_tag(OVERRIDDEN_PREFIX + key, json.dumps(short, ensure_ascii=False))
        self._registry.write_override_record(found.name, version, tag)
        # It is used up: the next promotion needs a reason of its own.
        self._registry.delete_model_version_tag(found.name, version, OVERRIDE_PREFIX + key)
        return True

    def _record(self, event: str, entry: dict[str, Any], *, required: bool = False) -> None:
        line = json.dumps({"time": now(), "event": event, **entry}, ensure_ascii=False)
        _logger.log(logging.INFO if event == "promoted" else logging.WARNING, "gate: %s", line)
        path = self.config.audit_log
        if path is None:
            return
        try:
            # One write of a line to a file opened for appending: several workers share it.
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                os.write(handle, (line + "\n").encode())
            finally:
                os.close(handle)
        except OSError as error:
            text = f"audit log {path} cannot be written: {error.strerror}"
            _logger.exception("gate: %s", text)
            if required:
                raise RefusedByGateError(
                    f"{text}: an override that is not recorded does not happen.", [text]
                ) from error


def user() -> str:
    """Who asks: the name a request to the server was made under, else that of the process."""
    if "flask" in sys.modules:
        from flask import has_request_context, request

        if has_request_context():
            given = request.authorization
            return str(given.username) if given is not None and given.username else "anonymous"
    return getpass.getuser()


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _message(entry: dict[str, str], problems: list[str]) -> str:
    listed = "\n".join(f"- {problem}" for problem in problems)
    return (
        f"{entry['target']} of {entry['model']!r} is protected and was not given to version "
        f"{entry['version']}:\n{listed}\nA version gets it with a PASS for exactly its files: "
        "mlflow-degrade gate makes one, mlflow-degrade verify says what is wrong."
    )


_PREFIX = "gated+"
# What a version is: its number, which another one may be given, and what that one would not have.
_Row = tuple[Any, ...]
# "alias" or "stage", which one, and what it is on.
_Promotion = tuple[str, str, _Row]
_EXCHANGED = (
    "the version was exchanged for another one while it was checked, and what was set is taken back"
)

_logger = logging.getLogger("mlflow_degrade.gate")


def gated_sql_store(store_uri: str, tracking_uri: str | None = None) -> Any:
    """A gated registry in a database: ``gated+sqlite``, ``gated+postgresql``, ``gated+mysql`` …."""
    from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
    from mlflow.server.constants import READ_REPLICA_BACKEND_STORE_URI_ENV_VAR
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
    from mlflow.store.model_registry.sqlalchemy_workspace_store import (
        WorkspaceAwareSqlAlchemyStore,
    )

    workspaces: Any = MLFLOW_ENABLE_WORKSPACES
    base = WorkspaceAwareSqlAlchemyStore if workspaces.get() else SqlAlchemyStore
    replica = os.environ.get(READ_REPLICA_BACKEND_STORE_URI_ENV_VAR)
    config = GateConfig.load()
    store = _behind_gate(base)(store_uri.removeprefix(_PREFIX), read_db_uri=replica)
    store.gate = PromotionGate(config, store, tracking_uri)
    return store


def gated_rest_store(store_uri: str, tracking_uri: str | None = None) -> Any:
    """A remote registry seen through the gate: ``gated+http`` and ``gated+https``."""
    # It guards what this client does. To guard the registry itself, start the server with a gated
    # database. Parameters are those of `gated_sql_store`.
    from mlflow.store.model_registry.rest_store import RestStore
    from mlflow.utils.credentials import get_default_host_creds

    plain = store_uri.removeprefix(_PREFIX)
    config = GateConfig.load()
    store = _behind_gate(RestStore)(partial(get_default_host_creds, plain))
    store.gate = PromotionGate(config, store, _plain(tracking_uri))
    return store


def _plain(uri: str | None) -> str | None:
    return None if uri is None else uri.removeprefix(_PREFIX)


@cache
def _behind_gate(base: type) -> Any:
    return type(f"Gated{base.__name__}", (GatedDoors, base), {})


class GatedDoors:
    """Every way by which a protected alias or stage may come to a version, guarded."""

    # Versions are created without alias and stage, deleting takes a version's aliases with it, and
    # copying creates: what is left are setting an alias, changing a stage, and giving a model that
    # has an alias already a name that is protected. ``tests/tracking/test_gated_store.py`` fails
    # when a new MLflow brings a method that is on neither list.

    gate: PromotionGate  # Set by the builders.

    def set_registered_model_alias(self, name: str, alias: str, version: Any) -> None:
        """Set an alias; a protected one only where the version's verdict holds."""
        self._refuse_lookalike(name, alias, version)
        plain: Any = super()
        config = self.gate.config
        if not (config.guards(name) and config.protects_alias(alias)):
            plain.set_registered_model_alias(name, alias, version)
            return
        before = _pointed_at(plain, name, alias)
        what = ("alias", alias, (str(version),))
        *_, checked = self._check(name, what, name)
        plain.set_registered_model_alias(name, alias, version)
        now = _pointed_at(plain, name, alias)
        # On another number it was set by somebody else, who went through the gate as well.
        if now is not None and now[0] == checked[0] and now != checked:
            _point_back(plain, name, alias, before)
            self.gate.refuse(name, version, f"alias {alias!r}", _EXCHANGED)

    def transition_model_version_stage(
        self, name: str, version: Any, stage: str, archive_existing_versions: bool
    ) -> Any:
        """Change a stage; to a protected one only where the version's verdict holds."""
        plain: Any = super()
        arguments = (name, version, stage, archive_existing_versions)
        if not (self.gate.config.guards(name) and self.gate.config.protects_stage(stage)):
            return plain.transition_model_version_stage(*arguments)
        *_, checked = self._check(name, ("stage", stage, (str(version),)), name)
        moved = plain.transition_model_version_stage(*arguments)
        if _row(moved) != checked:
            plain.transition_model_version_stage(name, version, "None", False)
            self.gate.refuse(name, version, f"stage {stage!r}", _EXCHANGED)
        return moved

    def rename_registered_model(self, name: str, new_name: str) -> Any:
        """Rename a model; its aliases and stages come to the new name like any others."""
        plain: Any = super()
        if not self.gate.config.guards(new_name):
            return plain.rename_registered_model(name, new_name)
        checked = {self._check(name, found, new_name) for found in self._promotions(plain, name)}
        renamed = plain.rename_registered_model(name, new_name)
        unchecked = self._promotions(plain, new_name) - checked
        for kind, label, (version, *_) in unchecked:
            # First what is wrong under the protected name, then the name.
            if kind == "alias":
                plain.delete_registered_model_alias(new_name, label)
            else:
                plain.transition_model_version_stage(new_name, version, "None", False)
        if unchecked:
            plain.rename_registered_model(new_name, name)
            kind, label, (version, *_) = min(unchecked)
            self.gate.refuse(name, version, f"{kind} {label!r}", _EXCHANGED)
        return renamed

    def create_model_version(
        self, name: str, source: str, run_id: Any = None, tags: Any = None, *more: Any, **named: Any
    ) -> Any:
        """Create a version, without tags about overrides: those are for one version, once."""
        kept = [tag for tag in tags or [] if not _about_overrides(tag.key)]
        if len(kept) < len(tags or []):
            _logger.warning("gate: tags about overrides are not taken to a new version of %r", name)
        plain: Any = super()
        return plain.create_model_version(name, source, run_id, kept, *more, **named)

    def set_model_version_tag(self, name: str, version: Any, tag: Any) -> None:
        """Set a tag; those that record overrides are the store's own."""
        self._keep_record(name, version, tag.key)
        plain: Any = super()
        plain.set_model_version_tag(name, version, tag)

    def delete_model_version_tag(self, name: str, version: Any, key: str) -> None:
        """Delete a tag; those that record overrides stay."""
        self._keep_record(name, version, key)
        plain: Any = super()
        plain.delete_model_version_tag(name, version, key)

    def write_override_record(self, name: str, version: str, tag: Any) -> None:
        """Set a tag that records an override."""
        plain: Any = super()
        plain.set_model_version_tag(name, version, tag)

    def _check(self, name: str, found: _Promotion, as_name: str) -> _Promotion:
        """Check what is on a version already as if it were to be given to it under another name."""
        kind, label, (version, *_) = found
        if kind == "alias":
            self._refuse_lookalike(as_name, label, version)
        key = fold(label) if kind == "alias" else f"stage.{fold(label)}"
        return kind, label, _row(self.gate.check(name, version, f"{kind} {label!r}", key))

    def _refuse_lookalike(self, name: str, alias: str, version: Any) -> None:
        """Refuse letters that a database may take for those of a protected alias."""
        config = self.gate.config
        known = alias.isascii() or config.protects_alias(alias)
        if config.guards(name) and not known:
            problem = (
                f"{alias!r} has letters outside ASCII, and databases differ in which of them they "
                "take for the same as another: name the alias in ASCII"
            )
            self.gate.refuse(name, version, f"alias {alias!r}", problem)

    def _promotions(self, plain: Any, name: str) -> set[_Promotion]:
        """Each alias and stage of a model that would be protected, with what it is on."""
        config = self.gate.config
        stages = {
            ("stage", str(version.current_stage), _row(version))
            for version in versions_of(plain, name, hidden=True)
            if config.protects_stage(version.current_stage)
        }
        aliases = {
            ("alias", alias, _row(plain.get_model_version(name, number)))
            for alias, number in plain.get_registered_model(name).aliases.items()
            if config.protects_alias(alias) or not alias.isascii()
        }
        return stages | aliases

    def _keep_record(self, name: str, version: Any, key: str) -> None:
        if fold(key).startswith(OVERRIDDEN_PREFIX) and self.gate.config.guards(name):
            problem = "tags that record overrides are written by the registry alone"
            self.gate.refuse(name, version, f"tag {key!r}", problem)


def _row(version: Any) -> _Row:
    return (
        str(version.version), version.creation_timestamp, version.run_id or "", version.source or ""
    )  # fmt: skip


def _pointed_at(plain: Any, name: str, alias: str) -> _Row | None:
    try:
        return _row(plain.get_model_version_by_alias(name, alias))
    except MlflowException:
        return None  # no such alias, or not any more


def _point_back(plain: Any, name: str, alias: str, before: _Row | None) -> None:
    """Point an alias to the version it was on, or to none where that version is gone."""
    plain.delete_registered_model_alias(name, alias)
    if before is None:
        return
    try:
        if _row(plain.get_model_version(name, before[0])) == before:
            plain.set_registered_model_alias(name, alias, before[0])
    except MlflowException:
        return


def _about_overrides(key: str) -> bool:
    return fold(key).startswith((OVERRIDE_PREFIX, OVERRIDDEN_PREFIX))

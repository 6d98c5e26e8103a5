"""The gate itself: may this version carry a protected alias or stage?

Whatever goes wrong while that is found out, the answer is no.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NoReturn

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from ..errors import DegradeError, PromotionRefusedError
from .gate_config import OVERRIDDEN_PREFIX, OVERRIDE_PREFIX, GateConfig
from .registry_listing import versions_of

_SHORTEST_REASON = 10
_RECORDED_REASON = 2_000

_logger = logging.getLogger("mlflow_degrade.gate")


class RefusedByGateError(PromotionRefusedError, MlflowException):
    """A refusal, typed for callers of this package and known to MLflow's server, which answers 403.

    Parameters
    ----------
    message : str
    problems : iterable of str
    """

    def __init__(self, message: str, problems: Iterable[str] = ()) -> None:
        MlflowException.__init__(self, message, error_code=PERMISSION_DENIED)
        self.problems = tuple(problems)


class PromotionGate:
    """Decides on promotions and keeps the record of them.

    Parameters
    ----------
    config : GateConfig
    registry : object
        A registry store, for versions, their locations and tags.
    tracking_uri : str, optional
        Where runs are; inside a server its own backend is used.
    """

    def __init__(self, config: GateConfig, registry: Any, tracking_uri: str | None = None) -> None:
        self.config = config
        self._registry = registry
        self._tracking_uri = tracking_uri

    def check(self, name: str, version: Any, target: str, key: str) -> Any:
        """Return if the promotion may go on, and raise otherwise.

        Parameters
        ----------
        name, version : str
            Of the version that is to be promoted.
        target : str
            What it is to get, for people: ``alias 'champion'``.
        key : str
            What an override has to name: ``champion``, or ``stage.production``.

        Returns
        -------
        mlflow.entities.model_registry.ModelVersion
            As it was before the check began: its name and number may be another version's by now.

        Raises
        ------
        PromotionRefusedError
            It is also an MLflow error, which a server answers with status 403.
        """
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
        """Whether the version belongs to a prompt, which has no bytes that could be loaded.

        The tag that MLflow goes by is set by whoever likes; a source that is MLflow's placeholder
        in every version of the name cannot hide a model.
        """
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

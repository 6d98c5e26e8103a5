"""MLflow registry stores that keep protected aliases and stages from unproven versions.

MLflow finds the builders below by the scheme of a registry URI: ``gated+sqlite:///mlflow.db`` is
``sqlite:///mlflow.db`` behind the gate, ``gated+https://host`` a remote registry seen through it.
"""

from __future__ import annotations

import logging
import os
from functools import cache, partial
from typing import Any

from mlflow.prompt.constants import IS_PROMPT_TAG_KEY

from .gate_config import OVERRIDDEN_PREFIX, OVERRIDE_PREFIX, GateConfig, fold
from .promotion_gate import PromotionGate

_PREFIX = "gated+"
# A page of MLflow's search.
_MOST_VERSIONS = 10_000

_logger = logging.getLogger("mlflow_degrade.gate")


def gated_sql_store(store_uri: str, tracking_uri: str | None = None) -> Any:
    """A gated registry in a database: ``gated+sqlite``, ``gated+postgresql``, ``gated+mysql`` ….

    Parameters
    ----------
    store_uri : str
        SQLAlchemy's URI of the database with ``gated+`` before it.
    tracking_uri : str, optional
        Where clients find runs; inside a server its own backend is used.

    Raises
    ------
    PolicyError
        The gate's configuration is not valid: an open gate would be worse than none at all.
    """
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
    """A remote registry seen through the gate: ``gated+http`` and ``gated+https``.

    It guards what this client does. To guard the registry itself, start the server with a gated
    database. Parameters are those of `gated_sql_store`.
    """
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
    """Every way by which a protected alias or stage may come to a version, guarded.

    Attributes
    ----------
    gate : PromotionGate
        Set by the builders.

    Notes
    -----
    Versions are created without alias and stage, deleting takes a version's aliases with it, and
    copying creates: what is left are setting an alias, changing a stage, and giving a model that
    has an alias already a name that is protected. ``tests/tracking/test_gated_store.py`` fails when
    a new MLflow brings a method that is on neither list.
    """

    gate: PromotionGate

    def set_registered_model_alias(self, name: str, alias: str, version: Any) -> None:
        """Set an alias; a protected one only where the version's verdict holds."""
        self._check_alias(name, alias, version)
        plain: Any = super()
        plain.set_registered_model_alias(name, alias, version)

    def transition_model_version_stage(
        self, name: str, version: Any, stage: str, archive_existing_versions: bool
    ) -> Any:
        """Change a stage; to a protected one only where the version's verdict holds."""
        self._check_stage(name, stage, version)
        plain: Any = super()
        return plain.transition_model_version_stage(name, version, stage, archive_existing_versions)

    def rename_registered_model(self, name: str, new_name: str) -> Any:
        """Rename a model; its aliases and stages come to the new name like any others."""
        plain: Any = super()
        if self.gate.config.guards(new_name):
            for alias, version in plain.get_registered_model(name).aliases.items():
                self._check_alias(name, alias, version, new_name)
            for found in _all_versions(plain, name):
                self._check_stage(name, found.current_stage, found.version, new_name)
        return plain.rename_registered_model(name, new_name)

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

    def _check_alias(self, name: str, alias: str, version: Any, as_name: str | None = None) -> None:
        if self.gate.config.guards(as_name or name) and self.gate.config.protects_alias(alias):
            self.gate.check(name, version, f"alias {alias!r}", fold(alias))

    def _check_stage(self, name: str, stage: str, version: Any, as_name: str | None = None) -> None:
        if self.gate.config.guards(as_name or name) and self.gate.config.protects_stage(stage):
            self.gate.check(name, version, f"stage {stage!r}", f"stage.{fold(stage)}")

    def _keep_record(self, name: str, version: Any, key: str) -> None:
        if fold(key).startswith(OVERRIDDEN_PREFIX) and self.gate.config.guards(name):
            problem = "tags that record overrides are written by the registry alone"
            self.gate.refuse(name, version, f"tag {key!r}", problem)


def _all_versions(registry: Any, name: str) -> list[Any]:
    """Versions of a model, with those that MLflow hides because somebody tagged them as prompts."""
    wanted = f"name = '{name}'"
    found = list(registry.search_model_versions(wanted, max_results=_MOST_VERSIONS))
    hidden = f"{wanted} AND tag.`{IS_PROMPT_TAG_KEY}` = 'true'"
    return found + list(registry.search_model_versions(hidden, max_results=_MOST_VERSIONS))


def _about_overrides(key: str) -> bool:
    return fold(key).startswith((OVERRIDE_PREFIX, OVERRIDDEN_PREFIX))

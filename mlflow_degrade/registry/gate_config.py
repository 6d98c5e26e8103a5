"""What a gated registry protects, as strict, validated data: the operator's file.

The file is named by the environment variable ``MLFLOW_DEGRADE_GATE`` of the process that holds the
registry store: the server, or the client where the client does.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ..core.errors import PolicyError
from ..core.yaml_files import read_yaml
from ..decision.policy import GatePolicy, explain
from .signing_keys import AllowedSigner, is_path

# Whose runs a gate believes.


@dataclass(frozen=True)
class TrustedExperiments:
    """The experiments whose evaluations and decisions are used."""

    names: tuple[str, ...]  # From the gate file, else the policy; empty where neither has a list.
    ids: tuple[str, ...]  # Of those that exist; the gate's own experiment where there is no list.

    @classmethod
    def of(cls, policy: GatePolicy) -> TrustedExperiments:
        """What holds for a gate with this policy, here and now."""
        from mlflow import MlflowClient

        names = GateConfig.load().evidence_experiments or policy.evidence_experiments
        if not names:
            return cls((), (own_experiment(),))
        client = MlflowClient()
        found = (client.get_experiment_by_name(name) for name in names)
        return cls(names, tuple(e.experiment_id for e in found if e is not None))

    def admits(self, run: Any) -> bool:
        """Whether a run that the user named may be used: any, unless there is a list."""
        return not self.names or run.info.experiment_id in self.ids


def own_experiment() -> str:
    """Id of the experiment that a gate's run will be in."""
    import mlflow
    from mlflow.tracking.fluent import _get_experiment_id

    active = mlflow.active_run()
    return str(_get_experiment_id() if active is None else active.info.experiment_id)


VARIABLE = "MLFLOW_DEGRADE_GATE"

OVERRIDE_PREFIX = "degrade.override."
"""A tag ``degrade.override.<alias>`` with a reason asks for an override."""
OVERRIDDEN_PREFIX = "degrade.overridden."
"""A tag ``degrade.overridden.<alias>``, set by the store alone, records one."""

_STAGES = ("None", "Staging", "Production", "Archived")


class GateConfig(BaseModel):
    """What is protected, and how it may be reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Aliases that need a valid verdict. Case, accents and letter width are ignored: ``Champion``
    # is protected where ``champion`` is.
    protected_aliases: tuple[str, ...] = ("champion", "production")
    # Stages (which MLflow has deprecated) that need one.
    protected_stages: tuple[str, ...] = ("Production",)
    models: tuple[str, ...] = ("*",)  # Patterns of registered model names the gate is for.
    # Required policy. Without it evidence must pass the policy it was made with, which its author
    # chose.
    policy: GatePolicy | None = None
    # Experiments whose runs may hold evidence; any where empty. With permissions on them, evidence
    # cannot be made by everybody.
    evidence_experiments: tuple[str, ...] = ()
    # Model digests that evidence may compare with; any where empty.
    trusted_baselines: tuple[str, ...] = ()
    # Whose signature evidence needs: public keys (a path, relative to this file, or the PEM text),
    # their fingerprints, or mappings with ``identity`` and ``issuer`` of sigstore. Evidence may be
    # unsigned where empty.
    signers: tuple[AllowedSigner, ...] = ()
    # Whether a version may be promoted without a verdict, for a reason that is recorded.
    allow_override: bool = False
    override_users: tuple[str, ...] = ()  # Who may; anybody where empty.
    # File to which each refusal, promotion and override is added as a line of JSON.
    audit_log: Path | None = None

    @field_validator("protected_stages")
    @classmethod
    def _known_stages(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        unknown = {fold(s) for s in stages} - {fold(s) for s in _STAGES}
        if unknown:
            raise ValueError(f"{sorted(unknown)} are no stages; MLflow has {list(_STAGES)}")
        return stages

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "gate") -> GateConfig:
        """Validate a mapping; errors name `source`, the key and the nearest known one."""
        given = dict(values)
        if isinstance(given.get("policy"), Mapping):
            given["policy"] = GatePolicy.from_mapping(given["policy"], f"{source}: policy")
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise PolicyError("\n".join(explain(error, source, cls))) from error

    @classmethod
    def load(cls) -> GateConfig:
        """Read the file that ``MLFLOW_DEGRADE_GATE`` names; the defaults where it names none."""
        path = os.environ.get(VARIABLE)
        if not path:
            return cls()
        source = f"{VARIABLE}={path}"
        values = read_yaml(path, source, PolicyError)
        if not isinstance(values, dict):
            # An empty file is more likely a mistake than a wish for the defaults.
            raise PolicyError(f"{source} holds no mapping of keys; without a gate file, unset it.")
        return cls.from_mapping(_beside(path, values), source)

    def guards(self, model: str) -> bool:
        """Whether the gate is for a registered model of this name."""
        return any(fnmatchcase(fold(model), fold(pattern)) for pattern in self.models)

    def protects_alias(self, alias: str) -> bool:
        """Whether an alias needs a valid verdict."""
        return fold(alias) in {fold(name) for name in self.protected_aliases}

    def protects_stage(self, stage: str) -> bool:
        """Whether a stage needs a valid verdict."""
        return fold(stage) in {fold(name) for name in self.protected_stages}


def allowed_signers(keys: Collection[str] = ()) -> tuple[AllowedSigner, ...]:
    """Signers whose signature counts: those with these keys, else those of the gate file.

    Parameters
    ----------
    keys : collection of str
        Paths of public keys in PEM, PEM texts, or fingerprints.

    Returns
    -------
    tuple of AllowedSigner

    Raises
    ------
    PolicyError
        A key cannot be read, or the gate file is not valid.
    """
    if not keys:
        return GateConfig.load().signers
    return GateConfig.from_mapping({"signers": list(keys)}, "--key").signers


def _beside(path: str, values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a file, with the paths of signers' keys as they are meant: relative to it."""
    signers = values.get("signers")
    if not isinstance(signers, list):
        return values
    folder = Path(path).parent
    meant = [
        str(folder / Path(s).expanduser()) if isinstance(s, str) and is_path(s) else s
        for s in signers
    ]
    return values | {"signers": meant}


def fold(name: str) -> str:
    """A name without case, accents, letter width and surrounding space."""
    # Databases differ in what they take for the same name: MySQL's usual collation finds the row
    # of ``champion`` when asked for ``Chámpion``.
    text = unicodedata.normalize("NFKD", name.strip())
    plain = "".join(c for c in text if not unicodedata.combining(c))
    return unicodedata.normalize("NFKD", plain.casefold())

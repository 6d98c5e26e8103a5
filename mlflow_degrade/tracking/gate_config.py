"""What a gated registry protects, as strict, validated data: the operator's file.

The file is named by the environment variable ``MLFLOW_DEGRADE_GATE`` of the process that holds the
registry store: the server, or the client where the client does.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from .._yaml_files import read_yaml
from ..errors import PolicyError
from ..policy import GatePolicy, explain
from .signing_keys import AllowedSigner, is_path

VARIABLE = "MLFLOW_DEGRADE_GATE"

OVERRIDE_PREFIX = "degrade.override."
"""A tag ``degrade.override.<alias>`` with a reason asks for an override."""
OVERRIDDEN_PREFIX = "degrade.overridden."
"""A tag ``degrade.overridden.<alias>``, set by the store alone, records one."""

_STAGES = ("None", "Staging", "Production", "Archived")


class GateConfig(BaseModel):
    """What is protected, and how it may be reached.

    Attributes
    ----------
    protected_aliases : tuple of str
        Aliases that need a valid verdict. Case, accents and letter width are ignored: ``Champion``
        is protected where ``champion`` is.
    protected_stages : tuple of str
        Stages (which MLflow has deprecated) that need one.
    models : tuple of str
        Patterns of registered model names the gate is for.
    policy : GatePolicy, optional
        Required policy. Without it evidence must pass the policy it was made with, which its author
        chose.
    evidence_experiments : tuple of str
        Experiments whose runs may hold evidence; any where empty. With permissions on them,
        evidence cannot be made by everybody.
    trusted_baselines : tuple of str
        Model digests that evidence may compare with; any where empty.
    signers : tuple of AllowedSigner
        Whose signature evidence needs: public keys (a path, relative to this file, or the PEM
        text), their fingerprints, or mappings with ``identity`` and ``issuer`` of sigstore.
        Evidence may be unsigned where empty.
    allow_override : bool
        Whether a version may be promoted without a verdict, for a reason that is recorded.
    override_users : tuple of str
        Who may; anybody where empty.
    audit_log : Path, optional
        File to which each refusal, promotion and override is added as a line of JSON.

    Examples
    --------
    >>> GateConfig().protects_alias("Champion"), GateConfig().protects_alias("challenger")
    (True, False)
    >>> GateConfig.from_mapping({"protected_alias": ["live"]})
    Traceback (most recent call last):
    ...
    mlflow_degrade.errors.PolicyError: gate: unknown key 'protected_alias', did you mean \
'protected_aliases'?
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    protected_aliases: tuple[str, ...] = ("champion", "production")
    protected_stages: tuple[str, ...] = ("Production",)
    models: tuple[str, ...] = ("*",)
    policy: GatePolicy | None = None
    evidence_experiments: tuple[str, ...] = ()
    trusted_baselines: tuple[str, ...] = ()
    signers: tuple[AllowedSigner, ...] = ()
    allow_override: bool = False
    override_users: tuple[str, ...] = ()
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
        """Validate a mapping; errors name `source`, the key and the nearest known one.

        Raises
        ------
        PolicyError
        """
        given = dict(values)
        if isinstance(given.get("policy"), Mapping):
            given["policy"] = GatePolicy.from_mapping(given["policy"], f"{source}: policy")
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise PolicyError("\n".join(explain(error, source, cls))) from error

    @classmethod
    def load(cls) -> GateConfig:
        """Read the file that ``MLFLOW_DEGRADE_GATE`` names; the defaults where it names none.

        Raises
        ------
        PolicyError
            The file cannot be read, is not YAML, gives a key twice, or violates the schema.
        """
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
    """A name without case, accents, letter width and surrounding space.

    Databases differ in what they take for the same name: MySQL's usual collation finds the row of
    ``champion`` when asked for ``Chámpion``.

    Examples
    --------
    >>> fold("Ｃｈá\u0041mpion ")
    'chaampion'
    """
    text = unicodedata.normalize("NFKD", name.strip())
    plain = "".join(c for c in text if not unicodedata.combining(c))
    return unicodedata.normalize("NFKD", plain.casefold())

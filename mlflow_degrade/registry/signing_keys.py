"""Keys of signers: which are allowed, how they are read, and what they are known by."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from ..core.errors import InputError, MissingExtraError, PolicyError

# Signatures of models as OpenSSF's model_signing writes and checks them.

# What model_signing leaves out of every model, unless told otherwise.
_NOT_SIGNED = (".git", ".gitattributes", ".github", ".gitignore")


def signed_files(files: Mapping[str, str]) -> dict[str, str]:
    """Those of a model's files that a signature of model_signing is about, in its order."""
    kept = {name: digest for name, digest in files.items() if name.split("/")[0] not in _NOT_SIGNED}
    return dict(sorted(kept.items(), key=lambda item: PurePosixPath(item[0])))


def model_root(files: Mapping[str, str]) -> str:
    """The digest by which model_signing calls a model: that of its files' digests, in order."""
    digests = (bytes.fromhex(d.removeprefix(_MARK)) for d in signed_files(files).values())
    return hashlib.sha256(b"".join(digests)).hexdigest()


def sign_model(private_key: Any, path: Path | None, files: Mapping[str, str], to: Path) -> bool:
    """Write a model's signature from the digests of its files."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    hashed = library("model_signing.hashing")
    config = library("model_signing.signing").Config()
    if private_key is None:
        config.use_sigstore_signer(use_ambient_credentials=True)
    elif isinstance(private_key, EllipticCurvePrivateKey):
        # Its type says text, its library wants bytes.
        config.use_elliptic_key_signer(private_key=path, password=key_password())
    else:
        return False

    class Hashed(hashed.Config):  # type: ignore[misc,name-defined]  # untyped library
        """Digests that are known already, so that large files are not read again."""

        def hash(self, *_: Any, **__: Any) -> Any:
            return _manifest(files)

    config.set_hashing_config(Hashed()).sign("model", to)
    return True


def _manifest(files: Mapping[str, str]) -> Any:
    manifest = library("model_signing.manifest")
    arguments = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        # MLflow writes it into its own copy; without it here a downloaded model would not verify.
        "ignore_paths": ["registered_model_meta", *_NOT_SIGNED],
    }
    kind = manifest.SerializationType.from_args(arguments)
    items = [
        kind.new_item(
            name, manifest.hashing.Digest("sha256", bytes.fromhex(digest.removeprefix(_MARK)))
        )
        for name, digest in signed_files(files).items()
    ]
    return manifest.Manifest("model", items, kind)


PASSWORD_VARIABLE = "MLFLOW_DEGRADE_SIGNING_PASSWORD"

_KINDS = "Ed25519, or ECDSA on P-256, P-384 or P-521"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MARK = "sha256:"
_PEM = "-----BEGIN"


class SignatureError(InputError):
    """A signature that does not hold; never leaves the reviews."""


class AllowedSigner(BaseModel):
    """Somebody whose signature counts: a public key, its fingerprint, or an identity of sigstore.

    Attributes
    ----------
    fingerprint : str, optional
        ``sha256:`` and the digest of the public key's DER form, as ``openssl pkey -pubin
        -outform DER | sha256sum`` prints it.
    public_key : str, optional
        The key itself, in PEM.
    identity, issuer : str, optional
        Of a certificate of sigstore: who signed, and who says so.

    Notes
    -----
    A text stands for a key: the path of a file, the PEM text, or the fingerprint.

    Examples
    --------
    >>> AllowedSigner.model_validate("sha256:" + 64 * "a").fingerprint[:12]
    'sha256:aaaaa'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str | None = None
    public_key: str | None = None
    identity: str | None = None
    issuer: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if isinstance(given, Path):
            given = str(given)
        if not isinstance(given, str):
            return given
        if is_path(given):
            return {"public_key": _read_key_file(given).decode("utf-8", "replace")}
        if _PEM in given:
            return {"public_key": given}
        return {"fingerprint": given.strip().lower()}

    @model_validator(mode="after")
    def _one_kind(self) -> AllowedSigner:
        by_key = self.public_key is not None or self.fingerprint is not None
        by_name = self.identity is not None or self.issuer is not None
        if by_key == by_name or (by_name and not (self.identity and self.issuer)):
            raise ValueError("a signer is a public key, its fingerprint, or identity and issuer")
        if self.public_key is not None:
            found = fingerprint(public_key_of(self.public_key.encode()))
            if self.fingerprint not in (None, found):
                raise ValueError(f"the public key has the fingerprint {found}")
            object.__setattr__(self, "fingerprint", found)
        elif self.fingerprint is not None:
            digits = self.fingerprint.removeprefix(_MARK)
            if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
                raise ValueError("a fingerprint is sha256: and 64 hexadecimal digits")
        return self

    def __str__(self) -> str:
        return self.fingerprint or f"{self.identity} (says {self.issuer})"


def is_path(text: str) -> bool:
    """Whether a text that stands for a key is the path of its file."""
    return not text.lower().startswith(_MARK) and _PEM not in text


def fingerprint(public_key: Any) -> str:
    """SHA-256 of a public key's DER form, as ``"sha256:<hex>"``."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return _MARK + hashlib.sha256(der).hexdigest()


def private_key(path: str) -> Any:
    """Read a private key in PEM."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _read_key_file(path)
    try:
        key = load_pem_private_key(text, key_password())
    except TypeError as error:
        reason = str(error).removesuffix(".")
        raise InputError(f"signing key {path}: {reason} ({PASSWORD_VARIABLE}).") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"signing key {path} is no private key in PEM, or {PASSWORD_VARIABLE} does not open "
            "it: openssl genpkey makes one."
        ) from error
    _check_kind(key.public_key(), f"signing key {path}")
    return key


def public_key_of(pem: bytes) -> Any:
    """Read a public key from PEM text."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        problem = "there is no public key in PEM: openssl pkey -pubout gives it"
        raise SignatureError(problem) from error
    _check_kind(key, "the public key")
    return key


def _check_kind(public_key: Any, what: str) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    curve = isinstance(public_key, EllipticCurvePublicKey) and public_key.curve.name in _CURVES
    if not curve and not isinstance(public_key, Ed25519PublicKey):
        raise SignatureError(f"{what} is of another kind than {_KINDS}.")


def _read_key_file(path: str) -> bytes:
    file = Path(path).expanduser()
    try:
        if not file.is_file():
            raise PolicyError(f"there is no key file {path}.")
        return file.read_bytes()
    except OSError as error:
        raise PolicyError(f"key file {path} cannot be read: {error.strerror}.") from error


def pem(public_key: Any) -> bytes:
    """A public key in PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return bytes(public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def key_password() -> bytes | None:
    """The password of the private key, if the environment has one; it is passed on to nobody."""
    given = os.environ.get(PASSWORD_VARIABLE)
    return given.encode() if given else None


def library(name: str) -> Any:
    """A module of an optional library, or the error that says what brings it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or name, "signing") from error

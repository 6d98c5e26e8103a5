"""Signatures of models as OpenSSF's model_signing writes and checks them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from .signing_keys import key_password, library

_MARK = "sha256:"
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

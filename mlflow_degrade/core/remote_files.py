"""Files that lie elsewhere, by fsspec: ``s3://``, ``gs://``, ``hf://``, ``https://`` and others."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError, MissingExtraError, redact

# "runs:/" and "models:/" are MLflow's, also with more slashes than they need.
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+)://+(?P<path>.*)", re.DOTALL)
_MLFLOW = ("runs", "models", "mlflow-artifacts")
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub",
    "http": "aiohttp", "https": "aiohttp",
}  # fmt: skip


def is_remote(reference: object) -> bool:
    """Whether a reference is an address rather than a path."""
    match = _ADDRESS.fullmatch(str(reference))
    return match is not None and match["scheme"] not in _MLFLOW


def shown_address(reference: str) -> str:
    """A reference as it may be shown and recorded: no user, password or signed query in it."""
    return redact(reference.split("?")[0]) if is_remote(reference) else reference


@contextmanager
def local_copy(reference: str) -> Iterator[Path]:
    """A file or folder from elsewhere, under its own name, for as long as the context.

    Raises
    ------
    MissingExtraError
        The package for its protocol is not installed.
    InputError
        It is not there, cannot be read, or no protocol has this name.
    """
    named = shown_address(reference)
    system, path = _find(reference, named)
    name = path.split("?")[0].rstrip("/").rpartition("/")[2] or "files"
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-remote-") as folder:
        target = Path(folder, name)
        try:
            # Only of what is no file it is asked whether it is a folder: web servers list none.
            if system.isfile(path):
                system.get_file(path, str(target))
            elif not system.isdir(path):
                raise InputError(f"{named} does not exist, or these credentials do not show it.")
            else:
                system.get(path.rstrip("/"), str(target), recursive=True)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - each protocol has errors of its own
            raise InputError(_why(named, reference, error)) from None
        yield target


def _find(reference: str, named: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("fsspec", "remote") from error
    scheme = reference.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(reference)
    except ImportError as error:
        raise MissingExtraError(_PACKAGES.get(scheme, scheme), "remote") from error
    except ValueError as error:
        if scheme in fsspec.available_protocols():
            raise InputError(_why(named, reference, error)) from None
        raise InputError(
            f"{named}: no protocol is called {scheme!r}. Known are s3, gs, hf, https and what else "
            "fsspec has."
        ) from error
    except Exception as error:  # noqa: BLE001 - as in `local_copy`
        raise InputError(_why(named, reference, error)) from None
    return system, path


def _why(named: str, reference: str, error: Exception) -> str:
    # The address in it may be signed, and its cause is not shown for the same reason.
    text = str(error).replace(reference, named)
    said = re.sub(r"\?[^\s'\"]*=[^\s'\"]*", "?***", text)
    return (
        f"{named} cannot be read ({type(error).__name__}: {said}). Check the address and the "
        "credentials in the environment."
    )

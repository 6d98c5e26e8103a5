"""The registry, asked no more than needed, and the versions of a name of whatever characters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlflow.prompt.constants import IS_PROMPT_TAG_KEY

_PAGE = 1_000


def plain_registry() -> Any:
    """The registry of MLflow's client for names that are known to be models'."""
    # The client itself asks before each call whether the name is a prompt's.
    from mlflow import MlflowClient

    return MlflowClient()._get_registry_client()  # type: ignore[no-untyped-call]


def versions_of(registry: Any, name: str, *, hidden: bool = False) -> list[Any]:
    """All versions of exactly this name."""
    # MLflow's filters have no escapes: a name with a quote in it ends the string early, and the
    # rest of it is read as a condition. Such a name is put between the other quotes, and one with
    # both kinds is looked for among all versions.
    quote = next((mark for mark in ("'", '"') if mark not in name), None)
    conditions = [] if quote is None else [f"name = {quote}{name}{quote}"]
    searches = [conditions]
    if hidden:
        searches.append([*conditions, f"tag.`{IS_PROMPT_TAG_KEY}` = 'true'"])
    found = (v for search in searches for v in _pages(registry, " AND ".join(search)))
    # Databases fold case, and some of them accents.
    return [version for version in found if version.name == name]


def _pages(registry: Any, condition: str) -> Iterator[Any]:
    token = None
    while True:
        page = registry.search_model_versions(
            condition or None, max_results=_PAGE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return

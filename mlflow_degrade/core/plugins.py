"""What other distributions add to a table of this package, by their entry points.

Names are known without importing anything. An addition is imported when it is asked for by name,
or when all of them are needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from .errors import PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Addition = TypeVar("Addition")


class PluginWarning(UserWarning):
    """A plugin that cannot be used, where others can."""


@dataclass(frozen=True)
class Plugin:
    """Where an addition comes from."""

    kind: str
    name: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of package {self.distribution!r} {self.version}"


class Plugins(Generic[Addition]):
    """Additions to one table."""

    def __init__(
        self,
        group: str,
        kind: str,
        of: type[Addition],
        taken: Callable[[str], bool],
        unfit: Callable[[Addition], str] = lambda _: "",
    ) -> None:
        self.group, self.kind, self._of = group, kind, of
        self._taken, self._unfit = taken, unfit
        self._loaded: dict[str, Addition | PluginError] = {}

    @cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        from importlib.metadata import entry_points  # not before a table is looked up

        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group):
            plugin = self._plugin(entry)
            if self._taken(entry.name):
                # Taking the built-in one silently would hide that somebody meant another.
                raise PluginError(
                    f"{plugin} has the name of a built-in one, which cannot be replaced: give it "
                    f"another name, or uninstall {plugin.distribution!r}."
                )
            if entry.name in found:
                raise PluginError(
                    f"{self._plugin(found[entry.name])} and {plugin} have one name: uninstall one "
                    "of the packages."
                )
            found[entry.name] = entry
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, sorted; nothing is imported."""
        return tuple(sorted(self._entries))

    def source(self, name: str) -> Plugin | None:
        """Where an addition comes from; None for names that are none."""
        return self._plugin(self._entries[name]) if name in self._entries else None

    def load(self, name: str) -> Addition:
        """One of `names`."""
        if name not in self._loaded:
            self._loaded[name] = self._try(self._entries[name])
        found = self._loaded[name]
        if isinstance(found, PluginError):
            raise found
        return found

    def usable(self) -> tuple[Addition, ...]:
        """All that can be loaded; the others are warned of."""
        found = []
        for name in self.names:
            try:
                found.append(self.load(name))
            except PluginError as error:
                warnings.warn(str(error), PluginWarning, stacklevel=2)
        return tuple(found)

    def _try(self, entry: EntryPoint) -> Addition | PluginError:
        try:
            found = entry.load()
        except Exception as error:  # noqa: BLE001 — it is another package's code
            why = f"importing it raises {type(error).__name__}: {error}"
        else:
            if not isinstance(found, self._of):
                why = f"{entry.value} is a {type(found).__name__}, not a {self._of.__name__}"
            elif (own := getattr(found, "name", None)) != entry.name:
                why = f"{entry.value} is named {own!r}, not as its entry point"
            elif not (why := self._unfit(found)):
                return found
        plugin = self._plugin(entry)
        return PluginError(
            f"{plugin} cannot be used: {why}. Repair or uninstall {plugin.distribution!r}."
        )

    def _plugin(self, entry: EntryPoint) -> Plugin:
        dist = entry.dist
        name, version = ("unknown", "unknown") if dist is None else (dist.name, dist.version)
        return Plugin(self.kind, entry.name, name, version)

"""Make the large random model and its schemes, which takes minutes of the CPU."""

from __future__ import annotations

from . import Found
from .large import SCHEMES
from .setting import Setting, tried

TITLE = "Large model: preparation"


def run(setting: Setting) -> Found:
    """A row for each scheme, in the order in which they are wanted."""
    for scheme in setting.pick(SCHEMES, SCHEMES[:1]):
        row = {"scheme": f"`{scheme}`"}
        yield TITLE, tried(row, lambda s=scheme: {"made": setting.model(s, large=True).name})

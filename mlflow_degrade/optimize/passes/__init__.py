"""One file a technique: what makes a model smaller or faster, and what chooses where."""

from ...core.moved import names_of

__getattr__ = names_of("mlflow_degrade.optimize", "pass_table")

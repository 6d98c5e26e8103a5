"""Ship the fast model only when it is not worse: paired significance gates in MLflow.

The public names are in ``__init__.pyi``. They are looked up when first used, so that importing the
package costs nothing; those of a room are in `mlflow_degrade.stats`, `mlflow_degrade.readers`,
`mlflow_degrade.optimize`, `mlflow_degrade.engine` and `mlflow_degrade.registry`.
"""

from typing import Any

from lazy_loader import attach_stub

from .core.moved import install

_look_up, __dir__, __all__ = attach_stub(__name__, __file__)
install()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mlflow-degrade")
    return _look_up(name)

"""What MLflow runs where a version is loaded whose files are another engine's: it says which.

Nothing of this package is needed for that, and nothing of it travels along.
"""

from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class EngineFiles(PythonModel):
    """Files that an engine serves, which is not MLflow."""

    def load_context(self, context: PythonModelContext) -> None:
        """Remember where the files are."""
        self._files = Path(context.artifacts["engine_files"])

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - part of MLflow's interface
        model_input: Any,  # noqa: ARG002
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> Any:
        """Refuse, and say what answers instead."""
        gguf = self._files.suffix == ".gguf"
        command = f"llama-server -m {self._files}" if gguf else f"vllm serve {self._files}"
        raise MlflowException(
            f"these files are served by another engine than MLflow: start it with {command}",
            INVALID_PARAMETER_VALUE,
        )


set_model(EngineFiles())

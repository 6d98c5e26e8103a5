"""What MLflow runs where a registered model is loaded ("models from code").

Nothing is pickled, and the ONNX directory travels beside this file byte for byte: what is served
is what was tested. The engine travels under a name of its own, so that it neither hides nor uses
another version of this package that is installed there.
"""

from mlflow.models import set_model
from mlflow_degrade_served.engine.language_model import OnnxLanguageModel

set_model(OnnxLanguageModel())

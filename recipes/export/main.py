"""Entry point of the MLflow project: export a model to ONNX and log it."""

from pathlib import Path

from mlflow_degrade.cli.export import main

if __name__ == "__main__":
    main(obj=Path(__file__).with_name("presets"))

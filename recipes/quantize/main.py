"""Entry point of the MLflow project: quantize a model and register it only when it is not worse."""

from pathlib import Path

from mlflow_degrade.cli.quantize import main

if __name__ == "__main__":
    main(obj=Path(__file__).with_name("presets"))

"""Entry point of the MLflow project: apply a recipe to a model, measure and log the result."""

from pathlib import Path

from mlflow_degrade.cli.optimize import main

if __name__ == "__main__":
    main(obj=Path(__file__).with_name("presets"))

"""Entry point of the MLflow project: promote a model only when it is not worse."""

from mlflow_degrade.cli.recipe_gate import main

if __name__ == "__main__":
    main()

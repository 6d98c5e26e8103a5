"""``python -m mlflow_degrade``: the command, where scripts are not on the path."""

from .cli import main

main()

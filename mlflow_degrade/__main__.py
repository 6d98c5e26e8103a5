"""``python -m mlflow_degrade``: the command, wherever its script is."""

from .cli import main

if __name__ == "__main__":
    main()

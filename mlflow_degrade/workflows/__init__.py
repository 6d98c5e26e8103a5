"""The jobs behind the MLflow projects in `recipes/`, callable from Python."""

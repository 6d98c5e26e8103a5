"""Runs and evaluations in MLflow."""

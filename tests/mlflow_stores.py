"""SQLite stores for tests: a database that MLflow made once, copied for each test."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.store.db import utils as database_utils

# MLflow checks each database it opens against its newest migration, which it finds by importing all
# of them: .1 s for each test, and always the same.
database_utils._get_latest_schema_revision = cache(database_utils._get_latest_schema_revision)


@cache
def _empty_database() -> Path:
    """A database with MLflow's tables and its default experiment; made once per process.

    Building the tables takes MLflow a second or two, which most tests have no use for.
    """
    folder = Path(tempfile.mkdtemp(prefix="mlflow-degrade-tests-"))
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


def make_store(folder: Path) -> str:
    """Make an empty store in a folder and return its URI; artifacts lie below the same folder."""
    database = folder / "mlflow.db"
    shutil.copy(_empty_database(), database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0",
            (f"{folder}/mlruns/0",),
        )
    return f"sqlite:///{database}"


def use_empty_store(folder: Path) -> str:
    """Point MLflow to an empty store for the rest of the test and return its URI."""
    uri = make_store(folder)
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("Default")
    return uri

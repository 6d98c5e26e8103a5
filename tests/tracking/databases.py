"""PostgreSQL and MariaDB servers of one's own, in temporary directories."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from enforcement_cases import free_port

_SYSTEM = f"{os.environ.get('PATH', '')}:/usr/sbin"


@contextmanager
def running_postgres() -> Iterator[str]:
    """SQLAlchemy URI of an empty database; skips with the reason where there is no PostgreSQL."""
    programs = _programs()
    # PostgreSQL refuses to run as root; Debian's package brings a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        if user is not None:
            account = pwd.getpwnam(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
        data, port = folder / "data", free_port()

        def call(*command: str) -> None:
            done = subprocess.run(
                [str(programs / command[0]), *command[1:]],
                cwd=folder, user=user, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr or done.stdout

        call("initdb", "-D", str(data), "-U", "mlflow", "-A", "trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
        call("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            # SQLAlchemy's default driver depends on its version: name the one that is installed.
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed: pip install psycopg2-binary")
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    usable = [folder for folder in folders if (folder / "pg_ctl").exists()]
    if not usable:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("running as root, and there is no user 'postgres' to run PostgreSQL")
    return usable[-1]


@contextmanager
def running_mariadb(collation: str = "utf8mb4_general_ci") -> Iterator[str]:
    """SQLAlchemy URI of an empty database, which folds letters by its collation; or skips."""
    if importlib.util.find_spec("pymysql") is None:
        pytest.skip("pymysql is not installed: pip install pymysql")
    server, install = shutil.which("mariadbd", path=_SYSTEM), shutil.which("mariadb-install-db")
    if server is None or install is None or shutil.which("my_print_defaults") is None:
        pytest.skip(
            "MariaDB is not installed: apt-get install mariadb-server-core mariadb-client-core"
        )
    import pymysql

    folder = Path(tempfile.mkdtemp(prefix="mariadb-", dir="/tmp"))
    # It refuses to run as root unless it is told to.
    user = ["--user=root"] if os.geteuid() == 0 else []
    socket, port = folder / "socket", free_port()
    process = None
    try:
        made = subprocess.run(
            [install, "--no-defaults", *user, f"--datadir={folder}/data", "--skip-test-db",
             "--auth-root-authentication-method=normal"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [server, "--no-defaults", *user, f"--datadir={folder}/data", f"--port={port}",
                 f"--socket={socket}", f"--pid-file={folder}/pid", "--bind-address=127.0.0.1",
                 "--innodb-flush-log-at-trx-commit=0", f"--collation-server={collation}",
                 "--character-set-server=utf8mb4"],
                stdout=log, stderr=log,
            )  # fmt: skip
        for _ in range(600):
            try:
                connection = pymysql.connect(unix_socket=str(socket), user="root")
            except pymysql.err.OperationalError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
            else:
                break
        with connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE mlflow COLLATE {collation}")
            cursor.execute("CREATE USER mlflow@'127.0.0.1' IDENTIFIED BY 'mlflow'")
            cursor.execute("GRANT ALL ON mlflow.* TO mlflow@'127.0.0.1'")
        yield f"mysql+pymysql://mlflow:mlflow@127.0.0.1:{port}/mlflow"
    finally:
        if process is not None:
            process.terminate()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)

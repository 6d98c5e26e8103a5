"""Check an installed wheel, from outside of a clone: everything a user needs came with it.

``nox -s build`` runs it in an environment that has the wheel and its dependencies only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path

import mlflow_degrade

_NEEDED = (
    "py.typed",
    "optimize/spaces",
    "report/report.html.j2",
    "report/search.html.j2",
    "evaluation/starter",
    "optimize/texts.json",
)


def main() -> None:
    package = files("mlflow_degrade")
    missing = [name for name in _NEEDED if not package.joinpath(name).is_file()
               and not package.joinpath(name).is_dir()]  # fmt: skip
    assert not missing, f"the wheel lacks {missing}"
    starter = package.joinpath("evaluation/starter")
    assert any(".yaml" in str(entry) for entry in Path(str(starter)).rglob("*")), "no starter tasks"
    assert mlflow_degrade.__version__ == version("mlflow-degrade")
    stores = [e for e in entry_points(group="mlflow.model_registry_store") if "gated" in e.name]
    assert stores, "MLflow finds no gated store"
    for entry in stores:
        entry.load()
    command = str(Path(sys.executable).with_name("mlflow-degrade"))
    subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        for side, wrong in (("a", 0), ("b", 40)):
            rows = "".join(f"{n},{int(n >= wrong)}\n" for n in range(400))
            (Path(folder) / f"{side}.csv").write_text(f"prompt_id,score\n{rows}")
        compare = [command, "compare", "a.csv", "b.csv", "--report", "report.html"]
        done = subprocess.run(compare, cwd=folder, check=False, stdout=subprocess.DEVNULL)
        assert done.returncode == 1, f"compare exits {done.returncode}, 1 (FAIL) is right"
        assert (Path(folder) / "report.html").stat().st_size > 1000
    print(f"mlflow-degrade {mlflow_degrade.__version__} from {package}: complete")


if __name__ == "__main__":
    main()

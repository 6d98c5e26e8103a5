"""Packages that add a reader, a scheme or an aggregation rule, found by their entry points."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflow_degrade import Decision, GatePolicy, SampleScores, decide
from mlflow_degrade.core.errors import PluginError
from mlflow_degrade.core.plugins import Plugins, PluginWarning
from mlflow_degrade.optimize.schemes import SCHEME_PLUGINS
from mlflow_degrade.samples.readers import READER_PLUGINS, read_samples
from mlflow_degrade.stats._combination_rules import RULE_PLUGINS

ROOT = Path(__file__).parents[1]
PACKAGE = "degrade-plugin-example"

Install = Callable[..., None]
_READER = """
    from mlflow_degrade.readers import Reader
    from mlflow_degrade.scores import SampleScores
    def _read(path):
        rows = [{"task": "t", "doc_id": n, "metric": "acc", "score": 1.0} for n in range(3)]
        return SampleScores.from_records(rows)
    def _crashes(path):
        return 1 / 0
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with entry points on the path: its metadata are all that is looked at."""

    def put(name: str, group: str, points: str, code: str = "") -> None:
        folder = tmp_path / name
        info = folder / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{points}\n")
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(folder)

    return put


def _forget(plugins: Plugins[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have entry points looked up again, in this test and after it."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setitem(plugins.__dict__, "_entries", None)  # what undoes what the test caches
    del plugins.__dict__["_entries"]


def test_a_plugin_that_cannot_be_loaded_is_named_and_breaks_no_other(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = "mlflow_degrade.readers"
    install("plug_broken", group, "broken = plug_broken:READER", "import no_such_library")
    install("plug_wrong", group, "wrong = plug_wrong:READER\nother = plug_wrong:OTHER", """
        READER = 3
        from mlflow_degrade.readers import READERS
        OTHER = READERS[0]
    """)  # fmt: skip
    install(
        "plug_good",
        group,
        "good = plug_good:READER",
        f"{_READER}\n    READER = Reader('good', 'a file *.good', "
        "lambda path: path.suffix == '.good', _read)",
    )
    install(
        "plug_crash",
        group,
        "crash = plug_crash:READER",
        f"{_READER}\n    READER = Reader('crash', 'nothing', _crashes, _read)",
    )
    _forget(READER_PLUGINS, monkeypatch)
    assert READER_PLUGINS.names == ("broken", "crash", "good", "other", "wrong")
    assert "plug_good" not in sys.modules, "names are known without importing"
    log = tmp_path / "log.good"
    log.write_text("anything")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_samples(log).means() == {("t", "acc", "none"): 1.0}
    said = [str(one.message) for one in caught if issubclass(one.category, PluginWarning)]
    assert len(said) == 4
    assert "reader 'broken' of package 'plug_broken' 1.2 cannot be used" in said[0]
    assert "ModuleNotFoundError: No module named 'no_such_library'" in said[0]
    assert "is named 'samples', not as its entry point" in "".join(said)
    assert "plug_wrong:READER is a int, not a Reader" in "".join(said)
    assert "ZeroDivisionError" in "".join(said)
    (read_by,) = [str(one.message) for one in caught if "is read by" in str(one.message)]
    assert "reader 'good' of package 'plug_good' 1.2" in read_by
    with pytest.raises(PluginError, match="no_such_library"):
        read_samples(log, format="broken")


def test_a_plugin_comes_before_tables_and_after_formats_of_this_package(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(
        "plug_all",
        "mlflow_degrade.readers",
        "all = plug_all:READER",
        f"{_READER}\n    READER = Reader('all', 'everything', lambda path: True, _read)",
    )
    _forget(READER_PLUGINS, monkeypatch)
    log = tmp_path / "arc.csv"
    log.write_text("prompt_id,score\n1,1\n2,0\n")
    with pytest.warns(UserWarning, match="reader 'all' of package"):
        assert read_samples(log).tasks == ("t",)
    log = tmp_path / "samples.parquet"
    read_samples(tmp_path / "arc.csv", format="table").write_parquet(log)
    assert read_samples(log).tasks == ("samples",)


@pytest.mark.parametrize(
    ("plugins", "name"),
    [
        (READER_PLUGINS, "table"),
        (RULE_PLUGINS, "combined"),
        (SCHEME_PLUGINS, "fp16"),
        (SCHEME_PLUGINS, "int8-weight-only-block64"),
        (SCHEME_PLUGINS, "simulated-mxfp4"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_a_built_in_name_cannot_be_taken(
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    plugins: Plugins[Any],
    name: str,
) -> None:
    install("plug_thief", plugins.group, f"{name} = plug_thief:IT")
    _forget(plugins, monkeypatch)
    with pytest.raises(PluginError, match=r"of package .plug_thief. .* has the name of a built-in"):
        _ = plugins.names


def test_one_name_of_two_packages_is_refused(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("plug_one", "plug_two"):
        install(name, RULE_PLUGINS.group, f"same = {name}:RULE")
    _forget(RULE_PLUGINS, monkeypatch)
    with pytest.raises(PluginError, match=r"'plug_\w+' 1.2 and .* have one name"):
        _ = RULE_PLUGINS.names


def test_a_rule_that_does_not_say_what_it_is_cannot_be_used(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `drawn` it would be taken for a sum, without the rest its power for that of a sum."""
    code = "from dataclasses import replace\n"
    code += "from mlflow_degrade.stats._combination_rules import RULES\n"
    code += "UNDRAWN = replace(RULES['min_p'], name='undrawn', drawn=None)\n"
    code += "MUTE = replace(RULES['stouffer'], name='mute')\n"
    points = "undrawn = plug_rules:UNDRAWN\nmute = plug_rules:MUTE"
    install("plug_rules", RULE_PLUGINS.group, points, code)
    _forget(RULE_PLUGINS, monkeypatch)
    for name, why in (("undrawn", "neither weights nor drawn"), ("mute", "what its power is")):
        with pytest.raises(PluginError, match=why):
            RULE_PLUGINS.load(name)


def test_a_decision_by_built_in_rules_has_no_word_of_plugins() -> None:
    """Its bytes, and so its digest, are those from before there were any."""
    scores = SampleScores.from_records(
        [{"task": "t", "doc_id": n, "metric": "acc", "score": 1.0} for n in range(3)]
    )
    policy = GatePolicy(allow=("same-model",))
    decision = decide(policy.pair(scores, scores), policy)
    assert '"plugins"' not in decision.to_json()
    assert Decision.from_json(decision.to_json()) == decision


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed by pip into a folder of its own; nothing is fetched."""
    source = tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(ROOT / "examples" / "plugin", source)  # pip builds beside the source
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *alone, str(source)], check=True, timeout=300)
    return target


def _python(*arguments: str, plugins: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = [str(ROOT), *([] if plugins is None else [str(plugins)])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


_COMMAND = ("-c", "from mlflow_degrade.cli import main; main()")


def _write_marks(path: Path, wrong: int) -> str:
    """Two tasks of 400 items; in the first, `wrong` answers are wrong."""
    lines = [f"a {n} {'-' if n < wrong else '+'}" for n in range(400)]
    path.write_text("\n".join(lines + [f"b {n} +" for n in range(400)]) + "\n")
    return str(path)


@pytest.mark.slow
def test_the_example_reads_and_decides(example: Path, tmp_path: Path) -> None:
    fine = _write_marks(tmp_path / "fine.marks", 3)
    worse = _write_marks(tmp_path / "worse.marks", 12)
    compare = (*_COMMAND, "compare")
    shown = _python(*compare, "--help", plugins=example).stdout
    assert "|marks]" in "".join(shown.split())
    assert "|sidak]" in "".join(shown.split())
    options = ("--aggregation", "sidak", "--json", "-")
    done = _python(*compare, fine, worse, *options, plugins=example)
    assert done.returncode == 1, done.stderr
    assert "is read by reader 'marks' of package 'degrade-plugin-example' 0.1.0" in done.stderr
    decision = json.loads(done.stdout)
    # 9 regressions, no improvement, two tasks.
    assert decision["aggregate"]["p_worse"] == pytest.approx(1 - (1 - 0.5**9) ** 2, rel=1e-12)
    assert decision["plugins"] == [
        {"kind": "aggregation rule", "name": "sidak", "distribution": PACKAGE}
    ]
    assert decision["versions"][PACKAGE] == "0.1.0"
    without = _python(*compare, fine, worse, "--aggregation", "sidak")
    assert without.returncode == 3
    assert "Traceback" not in without.stderr
    assert "'sidak' is not one of" in without.stderr


_DECIDE = """
import sys
from pathlib import Path
from mlflow_degrade import GatePolicy, decide
from mlflow_degrade.readers import read_samples
from mlflow_degrade.tracking.evidence import write_evidence
policy = GatePolicy(aggregation="sidak")
paired = policy.pair(*map(read_samples, sys.argv[2:]))
write_evidence(Path(sys.argv[1]), decide(paired, policy), paired)
"""


@pytest.mark.slow
def test_evidence_by_a_rule_that_is_not_installed_names_the_package(
    example: Path, tmp_path: Path
) -> None:
    logs = [_write_marks(tmp_path / f"{name}.marks", n) for name, n in (("a", 3), ("b", 2))]
    folder, bundle = tmp_path / "evidence", tmp_path / "it.evidence.zip"
    folder.mkdir()
    done = _python("-c", _DECIDE, str(folder), *logs, plugins=example)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(bundle, "w") as target:
        for path in folder.iterdir():
            target.write(path, path.name)
    verify = (*_COMMAND, "evidence", "verify", str(bundle))
    here = _python(*verify, plugins=example)
    assert here.returncode == 2, here.stdout + here.stderr  # it agrees; nobody signed it
    away = _python(*verify)
    assert away.returncode == 1
    assert "Traceback" not in away.stderr
    said = " ".join((away.stdout + away.stderr).split())
    assert f"'sidak' of package '{PACKAGE}' 0.1.0, which is not installed here" in said


_APPLY = """
import sys
from mlflow_degrade.optimize.model_directory import ModelDirectory
from mlflow_degrade.optimize.schemes import apply_scheme
made = ModelDirectory.load(apply_scheme(sys.argv[1], "half-storage", progress=False))
print(made.recipe[-1]["plugin"], made.recipe[-1]["stored_in_float16"], made.size_bytes, made.path)
"""


@pytest.mark.slow
def test_the_example_makes_a_model(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_models import make_tiny_llama

    from mlflow_degrade.optimize.export import export_onnx
    from mlflow_degrade.optimize.source.model_directory import ModelDirectory
    from mlflow_degrade.optimize.source.resolve import resolve_model

    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    make_tiny_llama(tmp_path / "model")
    source = resolve_model(str(tmp_path / "model"))
    base = ModelDirectory.load(export_onnx(source, progress=False))
    done = _python("-c", _APPLY, str(base.path), plugins=example)
    assert done.returncode == 0, done.stderr
    plugin, _, rest = done.stdout.partition("0.1.0 ")
    assert plugin == f"scheme 'half-storage' of package '{PACKAGE}' "
    count, size, path = rest.split()
    assert int(count) > 4
    assert int(size) < 0.75 * base.size_bytes
    # Another version of the package may make another model.
    shutil.copytree(example, tmp_path / "newer")
    (metadata,) = (tmp_path / "newer").glob("*.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace("Version: 0.1.0", "Version: 0.2.0"))
    newer = _python("-c", _APPLY, str(base.path), plugins=tmp_path / "newer")
    assert newer.stdout.startswith(f"{plugin}0.2.0 ")
    assert newer.stdout.split()[-1] != path
    without = _python("-c", _APPLY, str(base.path))
    assert "unknown scheme 'half-storage'" in without.stderr
    recipe = ("-m", "mlflow_degrade", "quantize", "--help")
    assert "half-storage" in _python(*recipe, plugins=example).stdout

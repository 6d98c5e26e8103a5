"""Forged evidence, hundreds of kinds: none is accepted, and nothing honest is refused.

The forger may write everything that can be written: runs, artifacts, tags, the files of models. He
makes all digests fit again, knows the package, and has keys of his own, but none of the signers'.
"""

from __future__ import annotations

import itertools
import json
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import enforcement_cases as cases
import numpy as np
import pandas as pd
import pytest
import signing_cases as signing
from forgery_cases import Files, Forgery, Scene, all_forgeries, other_value, scenes
from mlflow.tracking import MlflowClient

from mlflow_degrade import Decision, GatePolicy, PairedScores, SampleScores, pair, verify_version
from mlflow_degrade.core.errors import DegradeError
from mlflow_degrade.registry.evidence import (
    EVIDENCE_TAG,
    PROOF_TAG,
    VERDICT_TAG,
    proof_tag,
    stated_tags,
)
from mlflow_degrade.registry.evidence_bundle import export_evidence, verify_bundle

pytest.importorskip("securesystemslib", reason='pip install "mlflow-degrade[signing]"')

# Written before decisions recorded the version of their rules.
_VERSION_ONE = Path(__file__).parents[1] / "data" / "decision_v1.json"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    yield from scenes(tmp_path_factory.mktemp("forgeries"))


@pytest.fixture(scope="module")
def forgeries(scene: Scene) -> list[Forgery]:
    return all_forgeries(scene)


# The tests


def _bundle(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _accepted(scene: Scene, files: Files) -> bool:
    """Whether a bundle is taken for what the signer signed about the honest version's model."""
    path = _bundle(scene.folder / "forged.zip", files)
    return verify_bundle(path, scene.signers, policy=scene.policy, model_dir=scene.model).ok


def test_no_forged_bundle_is_accepted(scene: Scene, forgeries: list[Forgery]) -> None:
    assert _accepted(scene, scene.files(scene.honest))
    assert [f.name for f in forgeries if _accepted(scene, f.files)] == []


def test_without_the_model_the_statement_must_name_one_all_the_same(
    scene: Scene, forgeries: list[Forgery]
) -> None:
    forged = next(f for f in forgeries if f.name == "signature: statement: no model")
    found = verify_bundle(_bundle(scene.folder / "forged.zip", forged.files), scene.signers)
    assert found.problems == ("the signature is about other files of the model",)


def _tags(case: cases.Case, form: str) -> dict[str, str]:
    """A version's tags: its digests in one, or one for each as older versions have them."""
    if form == "one":
        return dict(case.tags)
    stated, _ = stated_tags(case.tags)
    return {key: value for key, value in stated.items() if key != PROOF_TAG}


def _refuse_all(scene: Scene, found: list[Forgery]) -> None:
    """Put each forgery into the run of the honest version, and ask the registry for the alias."""
    client, case, folder = MlflowClient(), scene.honest, signing.evidence_folder(scene.honest)
    files, tags = scene.files(case), dict(case.tags)
    assert scene.refusal(case) is None
    accepted = []
    for forgery in found:
        shutil.rmtree(folder)
        folder.mkdir()
        for name, content in forgery.files.items():
            (folder / name).write_bytes(content)
        for key, value in proof_tag(_tags(case, "each") | forgery.tags).items():
            if client.get_model_version(*case.at).tags.get(key) != value:
                client.set_model_version_tag(*case.at, key, value)
        if scene.refusal(case) is None:
            accepted.append(forgery.name)
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for key, value in tags.items():
        client.set_model_version_tag(*case.at, key, value)
    assert accepted == []
    assert scene.refusal(case) is None


def test_the_registry_refuses_some_forgeries_of_each_kind(
    scene: Scene, forgeries: list[Forgery]
) -> None:
    """All of them take a minute: the next test."""
    _refuse_all(scene, forgeries[:: len(forgeries) // 18])


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_registry_refuses_all_forgeries(scene: Scene, forgeries: list[Forgery]) -> None:
    _refuse_all(scene, forgeries)


def _altered_models(
    case: cases.Case, other: cases.Case
) -> Iterator[tuple[str, Callable[[Path], None]]]:
    names = [
        p.relative_to(signing.model_folder(case))
        for p in signing.model_folder(case).rglob("*")
        if p.is_file()
    ]
    for name in names:
        yield f"{name} changed", lambda f, n=name: (f / n).write_bytes((f / n).read_bytes() + b" ")
        yield f"{name} removed", lambda f, n=name: (f / n).unlink()
        yield f"{name} renamed", lambda f, n=name: (f / n).rename((f / n).with_suffix(".x"))
    yield "a file added", lambda f: (f / "added.py").write_text("")
    yield (
        "the files of another version",
        lambda f: shutil.copytree(signing.model_folder(other), f, dirs_exist_ok=True),
    )
    # By OpenSSF's digest of all digests the names play no part as long as their order stays.
    yield "names changed in order", lambda f: (f / "requirements.txt").rename(f / "requirements.tx")


def test_signed_evidence_does_not_cover_other_bytes(scene: Scene) -> None:
    folder, kept = scene.model, scene.folder / "kept"
    shutil.copytree(folder, kept)
    bundle = scene.folder / "honest.zip"
    export_evidence(f"runs:/{scene.honest.run_id}", bundle)
    accepted = []
    for name, alter in list(_altered_models(scene.honest, scene.second)):
        alter(folder)
        if scene.refusal(scene.honest) is None:
            accepted.append(name)
        try:
            found = verify_bundle(bundle, scene.signers, model_dir=folder)
        except DegradeError:
            pass  # no model any more
        else:
            assert not found.ok, name
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    assert accepted == []
    assert scene.refusal(scene.honest) is None
    assert verify_bundle(bundle, scene.signers, model_dir=folder).ok


@pytest.mark.parametrize("form", ["one", "each"])
def test_evidence_and_tags_do_not_move_to_other_versions(scene: Scene, form: str) -> None:
    """A version of bad bytes, with whatever an honest one has."""
    honest, bad = scene.honest, scene.failing
    theirs, own = _tags(honest, form), _tags(bad, "each")
    lent = [
        cases.register_again("lent", bad.model_uri, run, bad.digest, {**theirs, **tags})
        for run, tags in (
            (honest.run_id, {}),
            (bad.run_id, {}),
            (honest.run_id, {"degrade.model_digest": bad.digest}),
            (
                honest.run_id,
                {k: own[k] for k in ("degrade.model_digest", "degrade.artifact_digest")},
            ),
            (bad.run_id, {"degrade.run_id": bad.run_id}),
            (bad.run_id, _tags(bad, form) | {VERDICT_TAG: "PASS"}),
        )
    ]
    assert [case.version for case in lent if scene.refusal(case) is None] == []
    # The signer's own word, by rules that are not the gate's.
    assert "under the required policy" in str(scene.refusal(scene.lax))


@pytest.mark.parametrize("form", ["one", "each"])
def test_no_tag_can_say_something_else(scene: Scene, form: str) -> None:
    """Changed, or taken from another version; the pointer to the run only where it leads."""
    client, case = MlflowClient(), scene.honest
    accepted = []
    own = _tags(case, form)
    for key in case.tags.keys() - own.keys():
        client.delete_model_version_tag(*case.at, key)
    for key, value in own.items():
        client.set_model_version_tag(*case.at, key, value)
    assert scene.refusal(case) is None
    for key, value in own.items():
        others = [_tags(other, form)[key] for other in (scene.second, scene.failing)]
        others += [] if key == "degrade.run_id" else [other_value(value), ""]
        for other in others:
            if other == value:
                continue
            client.set_model_version_tag(*case.at, key, other)
            if scene.refusal(case) is None:
                accepted.append((key, other))
        client.set_model_version_tag(*case.at, key, value)
    told = PROOF_TAG if form == "one" else EVIDENCE_TAG
    client.delete_model_version_tag(*case.at, told)
    assert scene.refusal(case) is not None
    client.set_model_version_tag(*case.at, told, own[told])
    assert accepted == []
    for key, value in case.tags.items():
        client.set_model_version_tag(*case.at, key, value)
    for key in own.keys() - case.tags.keys():
        client.delete_model_version_tag(*case.at, key)
    assert scene.refusal(case) is None


def test_links_are_no_evidence(scene: Scene) -> None:
    folder = signing.evidence_folder(scene.honest)
    aside = scene.folder / "aside.json"
    shutil.move(folder / "policy.json", aside)
    (folder / "policy.json").symlink_to(aside)
    try:
        assert "policy.json of the evidence is a link" in str(scene.refusal(scene.honest))
    finally:
        (folder / "policy.json").unlink()
        shutil.move(aside, folder / "policy.json")


# Bundles as files


def _entry(name: str, mode: int = 0o100644, compress: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr, entry.compress_type = mode << 16, compress
    return entry


def test_bundles_that_hold_something_else(scene: Scene, tmp_path: Path) -> None:
    """Nothing of them is written anywhere, whatever their names."""
    files = scene.files(scene.honest)
    outside = [
        "../policy.json", "../../x", "/etc/x", "a/../policy.json", "./policy.json", "a/policy.json",
        "..\\policy.json", "C:\\x", "policy.json/", "POLICY.JSON", "policy.json ", "polіcy.json",
        "~/x", "//policy.json", "",
    ]  # fmt: skip
    added: dict[str, list[tuple[zipfile.ZipInfo, bytes]]] = {
        f"{name!r} added": [(_entry(name), b"{}")] for name in outside
    }
    added |= {
        "policy.json twice": [(_entry("policy.json"), b"{}")],
        "a directory": [(_entry("folder/", 0o040755), b"")],
    }
    variants = {what: list(files.items()) for what in added}
    path, accepted = tmp_path / "forged.zip", []
    for what, entries in added.items():
        with zipfile.ZipFile(path, "w") as archive, pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            for name, content in variants[what]:
                archive.writestr(_entry(name), content)
            for entry, content in entries:
                archive.writestr(entry, content)
        if not verify_bundle(path, scene.signers).problems:
            accepted.append(what)
    for what, changed in {
        "a link": _entry("policy.json", 0o120777),
        "a device": _entry("policy.json", 0o020666),
        "compressed": _entry("policy.json", compress=zipfile.ZIP_DEFLATED),
    }.items():
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(changed if name == "policy.json" else _entry(name), content)
        if not verify_bundle(path, scene.signers).problems:
            accepted.append(what)
    assert accepted == []
    assert [p.name for p in tmp_path.iterdir()] == ["forged.zip"]


def test_broken_bundles_are_no_bundles(scene: Scene, tmp_path: Path) -> None:
    """Cut at any place, with a bit of any file turned, or with lengths that lie."""
    path = tmp_path / "broken.zip"
    whole = _bundle(path, scene.files(scene.honest)).read_bytes()
    assert verify_bundle(path, scene.signers).ok
    rng = np.random.default_rng(0)
    broken = [whole[:place] for place in rng.integers(0, len(whole), 30)]
    broken += [
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for place in rng.integers(0, len(whole), 30)
    ]
    end = whole.rindex(b"PK\x05\x06")
    for offset, value in itertools.product((12, 16), (0, 7, 2**31)):
        lie = struct.pack("<I", value)
        broken.append(whole[: end + offset] + lie + whole[end + offset + 4 :])
    for content in broken:
        path.write_bytes(content)
        try:
            found = verify_bundle(path, scene.signers)
        except DegradeError:
            continue
        if found.ok:  # a bit that says nothing, as that of a date
            with zipfile.ZipFile(path) as archive:
                read = {name: archive.read(name) for name in archive.namelist()}
            assert read == scene.files(scene.honest)


# What is honest


def _by_version_one(digest: str) -> tuple[Decision, PairedScores]:
    """A decision by the first rules, on the samples it was made from."""
    recorded = json.loads(_VERSION_ONE.read_text(encoding="utf-8"))
    sides = []
    for side, model, known in (("baseline", "fp32", "fp32"), ("candidate", "int8", digest)):
        frames = []
        for task, (b, c, n) in {"arc": (4, 6, 600), "qa": (5, 5, 900)}.items():
            score = np.ones(n)
            score[slice(b, b + c) if side == "baseline" else slice(0, b)] = 0
            frame = pd.DataFrame({"task": task, "score": score, "metric": "acc"})
            frames.append(frame.assign(doc_id=[f"{task} {i}" for i in range(n)]))
        table = pd.concat(frames, ignore_index=True)
        sides.append(SampleScores.from_pandas(table, model=model, model_digest=known))
        recorded[side] = {
            "model": model,
            "model_digest": known,
            "samples_digest": sides[-1].digest(),
        }
    decision = Decision.from_json(json.dumps(recorded))
    assert decision.schema_version == 1
    return decision, pair(*sides)


_HONEST: dict[str, tuple[str, signing.Judge]] = {
    "plain": ("again", signing.judge(1, n=900)),
    "unicode": (
        'Мöдель 模型 o\'brien "x"',
        signing.judge(tasks=("数学", "größe", "👩‍🔬"), n=400, model="naïve — 8 bit"),
    ),
    "several tasks": ("tasks", signing.judge(0, n=500, tasks=tuple(f"task{i}" for i in range(12)))),
    "an early version": ("early", _by_version_one),
    "non-inferiority": (
        "noninferior",
        signing.judge(3, n=1500, policy=GatePolicy.from_mapping({"rule": "non_inferiority"})),
    ),
    "large": ("large", signing.judge(0, n=60_000)),
}


_LONG = ("plain", "non-inferiority", "large")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] if k in _LONG else []) for k in _HONEST]
)
def test_honest_versions_are_accepted(scene: Scene, kind: str, tmp_path: Path) -> None:
    name, judged = _HONEST[kind]
    key = signing.load_key(scene.folder / "release.pem")
    case = signing.register_judged(scene.folder, name, judged, word=kind[:3], key=key)
    assert scene.refusal(case) is None
    found = verify_version(*case.at, policy=scene.policy)
    assert found.ok, found.problems
    export_evidence(f"runs:/{case.run_id}", tmp_path / "b.zip")
    bundle = verify_bundle(
        tmp_path / "b.zip", scene.signers, policy=scene.policy, model_dir=signing.model_folder(case)
    )
    assert bundle.ok, bundle.problems
    assert bundle.trusted
    # The same bytes under another name are the same bytes.
    again = cases.register_again("copy", case.model_uri, case.run_id, case.digest, case.tags)
    assert scene.refusal(again) is None

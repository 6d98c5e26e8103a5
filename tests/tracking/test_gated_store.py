"""The gate in a client: protected aliases and stages, and every way around them."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import databases
import enforcement_cases as cases
import mlflow
import pytest
from gate_cases import log_evaluated
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.abstract_store import AbstractStore
from mlflow.tracking import MlflowClient
from mlflow_stores import make_store

from mlflow_degrade import GatePolicy, load_verified_model, promote, verify_version
from mlflow_degrade.core.errors import PolicyError, PromotionRefusedError
from mlflow_degrade.registry.gate_config import VARIABLE, GateConfig

_PROMPT = "mlflow.prompt.is_prompt"
_NUMBERS = itertools.count(30)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("mariadb", marks=pytest.mark.slow)])
def workplace(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A database behind the gate, an audit log, and one honest and one unproven model."""
    folder = tmp_path_factory.mktemp("gated")
    (folder / "gate.yaml").write_text(f"audit_log: {folder}/audit.jsonl\n")
    with ExitStack() as stack:
        if request.param == "mariadb":
            database = stack.enter_context(databases.running_mariadb())
        else:
            database = make_store(folder)
        (folder / "database").write_text(database)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv(VARIABLE, str(folder / "gate.yaml"))
        stack.enter_context(cases.pointed_at(folder, database, f"gated+{database}"))
        yield folder


def _database(folder: Path) -> str:
    return (folder / "database").read_text()


def _plain(folder: Path) -> MlflowClient:
    """A client of the same database without a gate."""
    return MlflowClient(registry_uri=_database(folder))


@pytest.fixture(scope="module")
def honest(workplace: Path) -> cases.Case:
    return cases.register_case(workplace, "honest")


@pytest.fixture(scope="module")
def unproven(workplace: Path) -> cases.Case:
    return cases.register_case(workplace, "unproven", content=b"bad", wrong=60)


@pytest.fixture
def copy_of_unproven(unproven: cases.Case) -> cases.Case:
    """A version under a name of its own, for tests that change it."""
    name = f"unproven-{uuid.uuid4().hex[:8]}"
    return cases.register_again(
        name, unproven.model_uri, unproven.run_id, unproven.digest, unproven.tags
    )


def _audit(folder: Path) -> list[dict[str, object]]:
    path = folder / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _other_gate(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> MlflowClient:
    """A client of the same database behind a gate with another configuration."""
    number = next(_NUMBERS)
    config = folder / f"gate-{number}.yaml"
    config.write_text(text)
    monkeypatch.setenv(VARIABLE, str(config))
    # MLflow keeps a store per URI: one that says the same in other words is another store.
    database = _database(folder)
    option = "timeout" if database.startswith("sqlite") else "connect_timeout"
    return MlflowClient(registry_uri=f"gated+{database}?{option}={number}")


def test_a_proven_version_is_promoted(workplace: Path, honest: cases.Case) -> None:
    client = MlflowClient()
    client.set_registered_model_alias("honest", "champion", honest.version)
    assert str(client.get_model_version_by_alias("honest", "champion").version) == honest.version
    with pytest.warns(FutureWarning):
        moved = client.transition_model_version_stage("honest", honest.version, "Production")
    assert moved.current_stage == "Production"
    assert _audit(workplace)[-1]["event"] == "promoted"


def test_what_promote_registers_passes_the_gate(workplace: Path) -> None:
    """The first champion is set past the gate, as one has to; the next one goes through it."""
    first_run, first = log_evaluated(workplace, "first", 10)
    version = mlflow.register_model(first, "chat").version
    plain = _plain(workplace)
    with pytest.raises(PromotionRefusedError, match="there is no evidence"):
        MlflowClient().set_registered_model_alias("chat", "champion", version)
    plain.set_registered_model_alias("chat", "champion", version)
    second_run, _ = log_evaluated(workplace, "second", 11)
    done = promote(
        f"runs:/{second_run}", f"runs:/{first_run}", register_as="chat", alias="champion"
    )
    found = MlflowClient().get_model_version_by_alias("chat", "champion")
    assert found.run_id == done.run_id
    assert verify_version("chat", found.version, policy=GatePolicy()).ok
    # Loading in place leaves byte code there; that is no tampering.
    assert mlflow.pyfunc.load_model("models:/chat@champion").predict(["x"]) == ["second"]
    assert verify_version("chat", found.version).ok
    assert load_verified_model("models:/chat@champion").predict(["x"]) == ["second"]


@pytest.mark.parametrize(
    "alias", ["champion", "Champion", "CHAMPION", "production", "chámpion", "ｃｈａｍｐｉｏｎ"]
)
def test_protected_aliases_in_any_spelling(
    workplace: Path, unproven: cases.Case, alias: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = cases.snapshot("unproven")
    with (
        caplog.at_level(logging.WARNING, "mlflow_degrade.gate"),
        pytest.raises(PromotionRefusedError, match="the verdict is FAIL") as refused,
    ):
        MlflowClient().set_registered_model_alias("unproven", alias, unproven.version)
    assert isinstance(refused.value, MlflowException)
    assert refused.value.error_code == "PERMISSION_DENIED"
    assert any("verdict is FAIL" in problem for problem in refused.value.problems)
    assert cases.snapshot("unproven") == before
    assert "refused" in caplog.text
    last = _audit(workplace)[-1]
    assert (last["event"], last["target"]) == ("refused", f"alias {alias!r}")
    assert last["user"]


def test_other_aliases_are_free(copy_of_unproven: cases.Case) -> None:
    client = MlflowClient()
    client.set_registered_model_alias(copy_of_unproven.name, "challenger", copy_of_unproven.version)
    assert cases.snapshot(copy_of_unproven.name)["aliases"] == {"challenger": 1}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("stage", ["Production", "production"])
def test_stages(unproven: cases.Case, stage: str) -> None:
    before = cases.snapshot("unproven")
    with pytest.raises(PromotionRefusedError, match="is protected"):
        MlflowClient().transition_model_version_stage("unproven", unproven.version, stage)
    assert cases.snapshot("unproven") == before


def test_prompt_tags_open_nothing(copy_of_unproven: cases.Case) -> None:
    name, version = copy_of_unproven.at
    client = MlflowClient()
    store = client._get_registry_client().store
    client.set_model_version_tag(name, version, _PROMPT, "true")
    client.set_registered_model_tag(name, _PROMPT, "true")
    for attempt in (
        lambda: store.set_registered_model_alias(name, "champion", version),
        lambda: store.set_prompt_alias(name, "champion", version),
        lambda: store.transition_model_version_stage(name, version, "Production", False),
    ):
        with pytest.raises(PromotionRefusedError):
            attempt()
    assert store.get_registered_model(name).aliases == {}


@pytest.mark.usefixtures("workplace")
def test_prompts_are_none_of_the_gates_business() -> None:
    mlflow.genai.register_prompt(name="greeting", template="Hello {{name}}")
    mlflow.genai.set_prompt_alias("greeting", alias="production", version=1)
    assert mlflow.genai.load_prompt("prompts:/greeting@production").version == 1


def test_renaming_into_a_protected_name(
    workplace: Path, copy_of_unproven: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate for release-* only: the alias is free elsewhere, and must not come along."""
    client = _other_gate(workplace, monkeypatch, "models: ['release-*']\n")
    name, version = copy_of_unproven.at
    client.set_registered_model_alias(name, "champion", version)
    before = cases.snapshot(name)
    with pytest.raises(PromotionRefusedError, match="alias 'champion'"):
        client.rename_registered_model(name, f"Release-{name}")
    assert cases.snapshot(name) == before
    store = client._get_registry_client().store
    client.delete_registered_model_alias(name, "champion")
    store.transition_model_version_stage(name, version, "Production", False)
    client.set_model_version_tag(name, version, _PROMPT, "true")
    with pytest.raises(PromotionRefusedError, match="stage 'Production'"):
        client.rename_registered_model(name, f"release-{name}")
    store.transition_model_version_stage(name, version, "None", False)
    client.rename_registered_model(name, f"release-{name}")


def test_deleting_takes_the_alias_along(workplace: Path, honest: cases.Case) -> None:
    """Neither a new model nor a new version of an old name finds an alias waiting for it."""
    client = MlflowClient()
    first = cases.register_again(
        "reborn", honest.model_uri, honest.run_id, honest.digest, honest.tags
    )
    client.set_registered_model_alias("reborn", "champion", first.version)
    client.delete_model_version("reborn", first.version)
    second = cases.register_case(workplace, "reborn", content=b"x", wrong=60)
    assert second.version != first.version
    assert cases.snapshot("reborn")["aliases"] == {}
    client.delete_registered_model("reborn")
    cases.register_again("reborn", second.model_uri, second.run_id, second.digest, second.tags)
    assert cases.snapshot("reborn")["aliases"] == {}


def test_copies_are_judged_by_their_bytes(honest: cases.Case, unproven: cases.Case) -> None:
    client = MlflowClient()
    good = client.copy_model_version(f"models:/honest/{honest.version}", "copies")
    bad = client.copy_model_version(f"models:/unproven/{unproven.version}", "copies")
    with pytest.raises(PromotionRefusedError):
        client.set_registered_model_alias("copies", "champion", bad.version)
    client.set_registered_model_alias("copies", "champion", good.version)


def test_a_required_policy(
    workplace: Path, honest: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    lax = GatePolicy(rule="non_inferiority", margin_pp=99)
    case = cases.register_case(workplace, "lax", content=b"lax", wrong=30, policy=lax)
    MlflowClient().set_registered_model_alias("lax", "champion", case.version)
    client = _other_gate(workplace, monkeypatch, "policy: {margin_pp: 2}\n")
    with pytest.raises(
        PromotionRefusedError, match="under the required policy the verdict is FAIL"
    ):
        client.set_registered_model_alias("lax", "production", case.version)
    client.set_registered_model_alias("honest", "production", honest.version)


def test_overrides_are_explicit_and_recorded(
    workplace: Path, copy_of_unproven: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, version = copy_of_unproven.at
    tag = "degrade.override.champion"
    plain = MlflowClient()
    plain.set_model_version_tag(name, version, tag, "hotfix 4711, agreed with the on-call lead")
    with pytest.raises(PromotionRefusedError, match="this gate allows no overrides"):
        plain.set_registered_model_alias(name, "champion", version)
    config = f"allow_override: true\naudit_log: {workplace}/audit.jsonl\n"
    client = _other_gate(workplace, monkeypatch, config)
    with pytest.raises(PromotionRefusedError):
        client.set_registered_model_alias(name, "production", version)
    client.set_registered_model_alias(name, "Champion", version)
    tags = client.get_model_version(name, version).tags
    assert tag not in tags, "an override is used up"
    record = json.loads(tags["degrade.overridden.champion"])
    assert record["reason"].startswith("hotfix 4711")
    assert record["user"]
    assert _audit(workplace)[-1]["event"] == "override"
    found = verify_version(name, version)
    assert not found.ok
    assert "promoted by an override" in found.notes[0]
    with pytest.raises(PromotionRefusedError):
        client.set_registered_model_alias(name, "champion", version)
    for change in (
        lambda: client.delete_model_version_tag(name, version, "degrade.overridden.champion"),
        lambda: client.set_model_version_tag(name, version, "degrade.overridden.x", "{}"),
    ):
        with pytest.raises(PromotionRefusedError, match="written by the registry alone"):
            change()
    assert client.get_model_version(name, version).tags == tags
    client.set_model_version_tag(name, version, tag, "for one version only")
    copied = client.copy_model_version(f"models:/{name}/{version}", f"{name}-copy")
    assert not [key for key in copied.tags if "overrid" in key]


def test_overrides_need_a_reason_a_right_and_a_record(
    workplace: Path, copy_of_unproven: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, version = copy_of_unproven.at
    before = cases.snapshot(name)["aliases"]
    tag = "degrade.override.champion"
    client = _other_gate(workplace, monkeypatch, "allow_override: true\n")
    client.set_model_version_tag(name, version, tag, "because")
    with pytest.raises(PromotionRefusedError, match="has 7 characters"):
        client.set_registered_model_alias(name, "champion", version)
    client.set_model_version_tag(name, version, tag, "a long enough reason")
    others = _other_gate(
        workplace, monkeypatch, "allow_override: true\noverride_users: [release-manager]\n"
    )
    with pytest.raises(PromotionRefusedError, match="may not override"):
        others.set_registered_model_alias(name, "champion", version)
    unwritable = _other_gate(
        workplace, monkeypatch, f"allow_override: true\naudit_log: {workplace}/no/where.jsonl\n"
    )
    with pytest.raises(PromotionRefusedError, match="not recorded does not happen"):
        unwritable.set_registered_model_alias(name, "champion", version)
    assert cases.snapshot(name)["aliases"] == before


def test_mlflow_has_no_new_doors() -> None:
    """Whatever MLflow's registry can do is known here to be guarded or harmless."""
    guarded = {
        "set_registered_model_alias",
        "transition_model_version_stage",
        "rename_registered_model",
        "create_model_version",
        "set_model_version_tag",
        "delete_model_version_tag",
    }
    through_guarded = {
        "copy_model_version", "create_prompt_version", "set_prompt_alias",
        "set_prompt_version_tag", "delete_prompt_version_tag",
    }  # fmt: skip
    harmless = {
        "create_prompt", "create_registered_model", "create_webhook", "delete_model_version",
        "delete_prompt", "delete_prompt_alias", "delete_prompt_tag", "delete_prompt_version",
        "delete_registered_model", "delete_registered_model_alias", "delete_registered_model_tag",
        "delete_webhook", "link_prompt_version_to_model", "link_prompt_version_to_run",
        "link_prompts_to_trace", "set_prompt_tag", "set_registered_model_tag", "test_webhook",
        "update_model_version", "update_registered_model", "update_webhook", "supports_workspaces",
    }  # fmt: skip
    reading = ("get_", "search_", "list_")
    methods = {
        name
        for name, _ in inspect.getmembers(AbstractStore)
        if not name.startswith("_") and not name.startswith(reading)
    }
    assert methods == guarded | through_guarded | harmless


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("protected_alias: [x]", "did you mean 'protected_aliases'"),
        ("policy: {margn_pp: 1}", "did you mean 'margin_pp'"),
        ("protected_stages: [Prod]", "are no stages"),
        ("allow_override: perhaps", "allow_override = 'perhaps'"),
        ("", "no mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_configuration_opens_nothing(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    client = _other_gate(workplace, monkeypatch, text)
    with pytest.raises(PolicyError, match=message):
        client.search_registered_models()


def test_configuration_file_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/no/such/gate.yaml")
    with pytest.raises(PolicyError, match="cannot be read"):
        GateConfig.load()
    monkeypatch.delenv(VARIABLE)
    assert GateConfig.load() == GateConfig()


_TRICKY = ("a' AND tag.x = 'b", "o'brien", 'say "hi"', "both ' and \"", "a`b")


@pytest.mark.parametrize("name", _TRICKY)
def test_no_name_hides_a_version_from_the_check_at_renaming(
    workplace: Path, unproven: cases.Case, name: str
) -> None:
    plain = _plain(workplace)
    made = cases.register_again(
        name, unproven.model_uri, unproven.run_id, unproven.digest, unproven.tags
    )
    with pytest.warns(FutureWarning):
        plain.transition_model_version_stage(name, made.version, "Production")
    with pytest.raises(PromotionRefusedError, match="Production"):
        MlflowClient().rename_registered_model(name, f"renamed {name}")
    assert plain.get_registered_model(name).name == name


@pytest.mark.parametrize("name", _TRICKY)
def test_an_honest_model_of_any_name_is_renamed(honest: cases.Case, name: str) -> None:
    name = f"honest {name}"
    cases.register_again(name, honest.model_uri, honest.run_id, honest.digest, honest.tags)
    MlflowClient().set_registered_model_alias(name, "champion", "1")
    MlflowClient().rename_registered_model(name, f"renamed {name}")
    assert MlflowClient().get_model_version_by_alias(f"renamed {name}", "champion")


@pytest.mark.parametrize("alias", ["champıon", "chаmpion", "live-ß"])
def test_letters_that_a_database_may_fold_are_refused(
    honest: cases.Case, copy_of_unproven: cases.Case, alias: str
) -> None:
    for made in (honest, copy_of_unproven):
        with pytest.raises(PromotionRefusedError, match="outside ASCII"):
            MlflowClient().set_registered_model_alias(made.name, alias, made.version)
    # Where nothing is protected any alias will do, until the model is to be called otherwise.
    open_gate = GateConfig.from_mapping({"models": ["guarded-*"]})
    store = MlflowClient()._get_registry_client().store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.gate, "config", open_gate)
        store.set_registered_model_alias(copy_of_unproven.name, alias, copy_of_unproven.version)
        with pytest.raises(PromotionRefusedError, match="outside ASCII"):
            store.rename_registered_model(copy_of_unproven.name, f"guarded-{uuid.uuid4().hex}")


@pytest.mark.slow
def test_a_database_that_folds_letters_takes_them_for_the_protected_ones(
    workplace: Path, honest: cases.Case
) -> None:
    """Why they are refused: without the gate they would move it."""
    if _database(workplace).startswith("sqlite"):
        pytest.skip("SQLite tells all letters apart")
    name, plain = "folded", _plain(workplace)
    for _ in range(2):
        cases.register_again(name, honest.model_uri, honest.run_id, honest.digest, honest.tags)
    plain.set_registered_model_alias(name, "champion", "1")
    plain.set_registered_model_alias(name, "champıon", "2")
    assert str(plain.get_model_version_by_alias(name, "champion").version) == "2"


class _Meanwhile:
    """Runs something once, right after a check was passed and before what was checked is done."""

    def __init__(self, patch: pytest.MonkeyPatch, store: Any, act: Callable[[], None]) -> None:
        check = store.gate.check

        def checked(*arguments: Any) -> Any:
            patch.undo()
            found = check(*arguments)
            act()
            return found

        patch.setattr(store.gate, "check", checked)


def _exchange(plain: MlflowClient, name: str, bad: cases.Case) -> Callable[[], None]:
    def act() -> None:
        plain.delete_registered_model(name)
        cases.register_again(name, bad.model_uri, bad.run_id, bad.digest, bad.tags)

    return act


def test_a_version_exchanged_while_it_is_checked_gets_nothing(
    workplace: Path, honest: cases.Case, unproven: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _plain(workplace)
    store = MlflowClient()._get_registry_client().store
    promotions = {
        "alias": lambda name: store.set_registered_model_alias(name, "champion", "1"),
        "stage": lambda name: store.transition_model_version_stage(name, "1", "Production", False),
    }
    for kind, promote_it in promotions.items():
        name = f"raced-{kind}"
        cases.register_again(name, honest.model_uri, honest.run_id, honest.digest, honest.tags)
        _Meanwhile(monkeypatch, store, _exchange(plain, name, unproven))
        with pytest.raises(PromotionRefusedError, match="exchanged"):
            promote_it(name)
        state = cases.snapshot(name)
        assert state["aliases"] == {}
        assert [stage for stage, *_ in state["versions"].values()] == ["None"]
        assert _audit(workplace)[-1]["event"] == "refused"
    # What the alias was on before stays where it is when it still is what it was.
    name = "raced-back"
    for _ in range(2):
        cases.register_again(name, honest.model_uri, honest.run_id, honest.digest, honest.tags)
    store.set_registered_model_alias(name, "champion", "1")

    def replace_second() -> None:
        plain.delete_model_version(name, "2")
        cases.register_again(
            name, unproven.model_uri, unproven.run_id, unproven.digest, unproven.tags
        )

    _Meanwhile(monkeypatch, store, replace_second)
    with pytest.raises((PromotionRefusedError, MlflowException)):
        store.set_registered_model_alias(name, "champion", "2")
    assert cases.snapshot(name)["aliases"] == {"champion": 1}


def test_an_alias_moved_while_its_model_is_renamed_is_taken_back(
    workplace: Path, honest: cases.Case, unproven: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _plain(workplace)
    name, guarded = "open-name", "guarded-name"
    for made in (honest, unproven):
        cases.register_again(name, made.model_uri, made.run_id, made.digest, made.tags)
    plain.set_registered_model_alias(name, "champion", "1")
    client = _other_gate(workplace, monkeypatch, "models: ['guarded-*']\n")
    store = client._get_registry_client().store
    with pytest.MonkeyPatch.context() as patch:
        _Meanwhile(patch, store, lambda: plain.set_registered_model_alias(name, "champion", "2"))
        with pytest.raises(PromotionRefusedError, match="exchanged"):
            client.rename_registered_model(name, guarded)
    assert cases.snapshot(name)["aliases"] == {}
    with pytest.raises(MlflowException):
        plain.get_registered_model(guarded)

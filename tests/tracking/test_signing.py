"""Signed evidence: who signed, what about, and tools that are not ours agree."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import enforcement_cases as cases
import mlflow
import pytest
import signing_cases as signing
from gate_cases import log_evaluated
from mlflow.tracking import MlflowClient
from mlflow_stores import make_store

from mlflow_degrade import Decision, GatePolicy, load_verified_model, promote, verify_version
from mlflow_degrade.cli import run as run_cli
from mlflow_degrade.core.errors import (
    InputError,
    PromotionRefusedError,
    RegistryError,
    VerificationError,
)
from mlflow_degrade.registry.attestation import sign_evidence
from mlflow_degrade.registry.evidence import stated_tags
from mlflow_degrade.registry.gate_config import VARIABLE, GateConfig, allowed_signers
from mlflow_degrade.registry.model_content import read_content
from mlflow_degrade.registry.signing import KEY_VARIABLE, SigningKey
from mlflow_degrade.registry.signing_keys import PASSWORD_VARIABLE, AllowedSigner

pytest.importorskip("securesystemslib", reason='pip install "mlflow-degrade[signing]"')


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A database behind a gate that lists one signer, whose key is release.pem."""
    folder = tmp_path_factory.mktemp("signing")
    signing.make_key(folder / "release.pem")
    signing.make_key(folder / "other.pem")
    # A path next to the gate file.
    (folder / "gate.yaml").write_text("signers: [release.pub]\n")
    database = make_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder / "gate.yaml"))
        with cases.pointed_at(folder, database, f"gated+{database}"):
            yield folder


@pytest.fixture(scope="module")
def signed(workplace: Path) -> cases.Case:
    case = cases.register_case(workplace, "signed")
    return signing.sign(case, signing.load_key(workplace / "release.pem"))


@pytest.fixture(scope="module")
def unsigned(workplace: Path) -> cases.Case:
    """Until some test signs it with a key that is not the release's."""
    return cases.register_case(workplace, "unsigned", content=b"others")


@pytest.fixture(scope="module")
def bundle(workplace: Path, signed: cases.Case) -> Path:
    path = workplace / "bundle.zip"
    assert run_cli(["evidence", "export", f"models:/signed/{signed.version}", "-o", str(path)]) == 0
    return path


def _set_champion(case: cases.Case) -> None:
    MlflowClient().set_registered_model_alias(case.name, "champion", case.version)


def test_a_signed_version_is_promoted_and_loaded(workplace: Path, signed: cases.Case) -> None:
    _set_champion(signed)
    found = verify_version(*signed.at)
    assert found.ok, found.problems
    assert found.signer == signing.load_key(workplace / "release.pem").signer.fingerprint
    assert not any("signed" in note for note in found.notes)


def test_unsigned_evidence_is_refused(unsigned: cases.Case) -> None:
    with pytest.raises(PromotionRefusedError, match="the evidence is not signed"):
        _set_champion(unsigned)
    # Where nobody lists signers it is as good as it ever was, and that is said.
    found = verify_version(*unsigned.at, signers=())
    assert found.ok
    assert any("is not signed: whoever may log runs" in note for note in found.notes)


def test_a_signature_by_another_key_is_refused(workplace: Path, unsigned: cases.Case) -> None:
    other = signing.load_key(workplace / "other.pem")
    case = signing.sign(unsigned, other)
    with pytest.raises(PromotionRefusedError, match="signatures count only from") as refused:
        _set_champion(case)
    assert other.signer.fingerprint in str(refused.value)
    assert verify_version(*case.at, signers=allowed_signers([str(workplace / "other.pub")])).ok
    found = verify_version(*case.at, signers=())
    assert any("nobody said whose signature counts" in note for note in found.notes)
    with pytest.raises(VerificationError, match="signatures count only from"):
        load_verified_model(f"models:/unsigned/{case.version}")


@pytest.mark.parametrize("kind", ["P-384", "P-521", "Ed25519"])
def test_kinds_of_keys_and_ways_to_name_them(
    workplace: Path, unsigned: cases.Case, kind: str
) -> None:
    """One signature takes the place of the other, as when a key is changed."""
    path = signing.make_key(workplace / f"{kind}.pem", kind)
    public = path.with_suffix(".pub")
    signing.sign(unsigned, signing.load_key(path))
    for name in (str(public), public.read_text(), _fingerprint(public)):
        assert verify_version(*unsigned.at, signers=allowed_signers([name])).ok
    has_model_signature = (signing.evidence_folder(unsigned) / "model.sig").is_file()
    assert has_model_signature == (kind != "Ed25519")


def _fingerprint(public: Path) -> str:
    """As the documentation says: OpenSSL's own, where it is installed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return str(AllowedSigner.model_validate(public.read_text()).fingerprint)
    command = [openssl, "pkey", "-pubin", "-in", str(public), "-outform", "DER"]
    der = subprocess.run(command, capture_output=True, check=True).stdout
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def test_the_statement_is_a_test_result_on_model_and_evidence(signed: cases.Case) -> None:
    """Read by in-toto's own classes, not by ours."""
    from google.protobuf import json_format
    from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
    from in_toto_attestation.v1 import statement, statement_pb2

    folder = signing.evidence_folder(signed)
    envelope = json.loads((folder / "attestation.json").read_text())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    read = json_format.Parse(base64.b64decode(envelope["payload"]), statement_pb2.Statement())
    statement.Statement.copy_from_pb(read).validate()
    assert read.predicate_type == "https://in-toto.io/attestation/test-result/v0.1"
    subjects = {item.name: item.digest["sha256"] for item in read.subject}
    evidence = stated_tags(signed.tags)[0]["degrade.evidence_digest"]
    assert f"sha256:{subjects['evidence']}" == evidence
    result = json_format.ParseDict(
        json_format.MessageToDict(read.predicate), test_result_pb2.TestResult()
    )
    assert (result.result, list(result.passed_tests)) == ("PASSED", ["qa"])
    names = {item.name for item in result.configuration}
    assert names == {
        "artifact.json", "baseline.parquet", "candidate.parquet", "decision.json", "manifest.json",
        "model.sig", "policy.json",
    }  # fmt: skip
    # The model has one name in both signatures: that of OpenSSF's manifest.
    model = json.loads((folder / "model.sig").read_text())["dsseEnvelope"]["payload"]
    assert (
        json.loads(base64.b64decode(model))["subject"][0]["digest"]["sha256"] == subjects["model"]
    )


def test_model_signing_accepts_what_was_written(workplace: Path, signed: cases.Case) -> None:
    """By its own command, on a model that MLflow downloaded; a changed file is found out."""
    where = mlflow.artifacts.download_artifacts(
        f"models:/signed/{signed.version}", dst_path=str(workplace / "downloaded")
    )
    command = [
        sys.executable, "-m", "model_signing", "verify", "key", where,
        "--signature", str(signing.evidence_folder(signed) / "model.sig"),
        "--public_key", str(workplace / "release.pub"),
    ]  # fmt: skip
    assert (Path(where) / "registered_model_meta").is_file()
    for leftover in Path(where).rglob("__pycache__"):  # of a test that loaded it where it lies
        shutil.rmtree(leftover)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    next(Path(where).rglob("model.onnx.data")).write_bytes(b"other")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "model.onnx.data" in done.stdout + done.stderr


# A gate with a key


def _candidates(workplace: Path, name: str) -> tuple[str, str]:
    first, _ = log_evaluated(workplace, f"{name}1", 10)
    second, _ = log_evaluated(workplace, f"{name}2", 11)
    return f"runs:/{second}", f"runs:/{first}"


def test_promote_signs_and_refuses_to_do_without(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = _candidates(workplace, "promoted")
    with pytest.raises(RegistryError, match="no key to sign a new decision"):
        promote(*sides, register_as="promoted", alias="champion")
    with pytest.raises(InputError, match="none of the signers that the gate file lists"):
        promote(*sides, register_as="promoted", signing_key=workplace / "other.pem")
    assert not MlflowClient().search_registered_models("name = 'promoted'")
    monkeypatch.setenv(KEY_VARIABLE, str(workplace / "release.pem"))
    done = promote(*sides, register_as="promoted", alias="champion")
    assert done.placement is not None
    assert done.placement.moved
    monkeypatch.delenv(KEY_VARIABLE)
    # What is signed already needs no key.
    again = promote(*sides, register_as="promoted", alias="champion")
    assert again.reused
    # Only to decide needs none either.
    assert promote(*_candidates(workplace, "decided"), register_as=None).placement is None


def test_a_decision_made_before_there_were_signers_is_signed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = _candidates(workplace, "early")
    monkeypatch.delenv(VARIABLE)
    early = promote(*sides, register_as="early")
    monkeypatch.setenv(VARIABLE, str(workplace / "gate.yaml"))
    with pytest.raises(RegistryError, match="the evidence is not signed"):
        promote(*sides, register_as="early")
    done = promote(*sides, register_as="early", signing_key=workplace / "release.pem")
    assert done.run_id == early.run_id
    assert done.reused
    assert done.placement is not None
    assert verify_version("early", done.placement.version.rsplit("/", 1)[1]).ok


def test_nothing_is_signed_but_what_was_decided(workplace: Path, signed: cases.Case) -> None:
    """Somebody exchanges the logged evidence before it is signed."""
    honest = cases.register_case(workplace, "exchanged", n=700)
    folder = signing.evidence_folder(honest)
    text = (folder / "decision.json").read_text()
    shutil.copytree(signing.evidence_folder(signed), folder, dirs_exist_ok=True)
    for name in ("attestation.json", "signer.pem", "model.sig"):
        (folder / name).unlink()
    content = read_content(signing.model_folder(honest))
    key = signing.load_key(workplace / "release.pem")
    with pytest.raises(RegistryError, match="not what was decided here") as refused:
        sign_evidence(honest.run_id, Decision.from_json(text), content, key)
    assert "decision.json is another decision" in str(refused.value)
    assert "artifact.json names other files" in str(refused.value)
    assert not (folder / "attestation.json").exists()
    (folder / "extra.txt").write_text("")
    with pytest.raises(RegistryError, match=r"extra\.txt is no part of evidence"):
        sign_evidence(honest.run_id, Decision.from_json(text), content, key)


# Keys


def test_an_encrypted_key_is_opened_by_the_environment_alone(
    workplace: Path,
    unsigned: cases.Case,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = signing.make_key(workplace / "locked.pem", password="hunter2hunter2")
    with pytest.raises(InputError, match=f"is encrypted.*{PASSWORD_VARIABLE}"):
        SigningKey.load(path)
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    with pytest.raises(InputError, match="does not open it"):
        SigningKey.load(path)
    monkeypatch.setenv(PASSWORD_VARIABLE, "hunter2hunter2")
    case = signing.sign(unsigned, signing.load_key(path))
    signers = allowed_signers([str(path.with_suffix(".pub"))])
    assert verify_version(*case.at, signers=signers).ok
    run = MlflowClient().get_run(case.run_id)
    shown = f"{run.data.params}{run.data.tags}{SigningKey.load(path)!r}{capsys.readouterr()}"
    logged = b"".join(p.read_bytes() for p in signing.evidence_folder(case).iterdir())
    assert "hunter2" not in shown
    assert b"hunter2" not in logged
    assert b"PRIVATE" not in logged


def test_keys_that_cannot_sign(workplace: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    def pem(key: object) -> bytes:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined,no-any-return]

    rsa_key, koblitz = (
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256K1()),
    )
    for name, content, said in (
        ("rsa.pem", pem(rsa_key), "of another kind than Ed25519, or ECDSA"),
        ("koblitz.pem", pem(koblitz), "of another kind than Ed25519, or ECDSA"),
        ("garbage.pem", b"\x00\xff", "no private key in PEM"),
        ("empty.pem", b"", "no private key in PEM"),
        ("public.pem", (workplace / "release.pub").read_bytes(), "no private key in PEM"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=said):
            SigningKey.load(tmp_path / name)
    with pytest.raises(InputError, match="there is no key file"):
        SigningKey.load(tmp_path / "absent.pem")
    with pytest.raises(InputError, match="there is no key file"):
        SigningKey.load(tmp_path)
    with pytest.raises(InputError, match="give the path of its file") as refused:
        SigningKey.load((workplace / "release.pem").read_text())
    assert "BEGIN" not in str(refused.value)
    assert SigningKey.load() is None


def test_keyless_signing_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it is out of reach; that much can be told before anything is sent anywhere."""
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "GOOGLE_SERVICE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    import sigstore.oidc

    monkeypatch.setattr(sigstore.oidc, "detect_credential", lambda: None)
    key = SigningKey.load("sigstore")
    assert key is not None
    assert key.signer is None
    with pytest.raises(InputError, match="gives no identity token"):
        key.sign(b"{}")


@pytest.mark.parametrize(
    ("signers", "said"),
    [
        ("[absent.pub]", "there is no key file"),
        ("[release.pem]", "no public key in PEM"),
        ('["sha256:12"]', "64 hexadecimal digits"),
        ("[{identity: me}]", "a public key, its fingerprint, or identity and issuer"),
        ("[{identity: me, issuer: you, key: k}]", "unknown key 'signers.0.key'"),
        ("release.pub", "signers"),
        ("[7]", "signers"),
    ],
)
def test_a_gate_file_with_wrong_signers_opens_no_gate(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, signers: str, said: str
) -> None:
    path = workplace / "wrong.yaml"
    path.write_text(f"signers: {signers}\n")
    monkeypatch.setenv(VARIABLE, str(path))
    with pytest.raises(InputError, match=said) as refused:
        GateConfig.load()
    body = (workplace / "release.pem").read_text().splitlines()[1]
    assert body not in str(refused.value)


def test_a_fingerprint_and_another_key_are_no_signer(workplace: Path) -> None:
    with pytest.raises(ValueError, match="the public key has the fingerprint sha256:"):
        AllowedSigner(
            fingerprint="sha256:" + 64 * "0", public_key=(workplace / "release.pub").read_text()
        )


# Bundles


def test_a_bundle_verifies_without_a_server(workplace: Path, bundle: Path, tmp_path: Path) -> None:
    """In a process of its own, whose MLflow leads nowhere."""
    code = "import sys; from mlflow_degrade.cli import main; main()"
    command = [sys.executable, "-c", code, "evidence", "verify", str(bundle), "--key"]
    environment = {"PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    environment |= {k: v for k, v in os.environ.items() if k.startswith(("PYTHON", "HOME"))}
    key = str(workplace / "release.pub")
    done = subprocess.run(
        [*command, key], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the verdict holds" in done.stdout
    assert "signed by" in done.stdout
    assert not list(tmp_path.iterdir())


def test_exit_codes_and_words_of_evidence_verify(
    workplace: Path,
    bundle: Path,
    signed: cases.Case,
    unsigned: cases.Case,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def verify(*options: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run_cli(["evidence", "verify", str(bundle), *options])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    model = ("--model", str(signing.model_folder(signed)))
    assert verify(*model)[0] == 0  # by the gate file
    monkeypatch.delenv(VARIABLE)
    code, text = verify()
    assert code == 2
    assert "nobody said whose signature counts" in text
    assert verify("--key", str(workplace / "release.pub"), *model)[0] == 0
    code, text = verify("--key", str(workplace / "other.pub"))
    assert code == 1
    assert "signatures count only from" in text
    key = ("--key", str(workplace / "release.pub"))
    code, text = verify(*key, "--model", str(signing.model_folder(unsigned)))
    assert code == 1
    assert "the signature is about other files of the model" in text
    strict = tmp_path / "strict.yaml"
    strict.write_text("min_samples: 100000\n")
    assert verify(*key, "--policy", str(strict))[0] == 1
    code, text = verify(*key, "--json")
    assert json.loads(text)["trusted"] is True
    for wrong, said in (
        (("--key", str(tmp_path / "absent")), "there is no key file"),
        (("--model", str(tmp_path)), "no logged model"),
    ):
        code, text = verify(*wrong)
        assert code == 3
        assert said in text


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    "reference", ["models:/signed@nobody", "runs:/absent", "models:/x/y", "a b"]
)
def test_nothing_is_exported_of_what_is_not_there(reference: str, tmp_path: Path) -> None:
    target = tmp_path / "out.zip"
    assert run_cli(["evidence", "export", reference, "-o", str(target)]) == 3
    assert not list(tmp_path.iterdir())


def test_a_run_and_its_version_give_the_same_bundle(
    bundle: Path, signed: cases.Case, tmp_path: Path
) -> None:
    for name, reference in (("a.zip", f"runs:/{signed.run_id}"), ("b.zip", signed.run_id)):
        assert run_cli(["evidence", "export", reference, "-o", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes() == bundle.read_bytes()


def test_no_bundle_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.zip").write_text("not a zip")
    for path in (tmp_path / "text.zip", tmp_path / "absent.zip", tmp_path):
        assert run_cli(["evidence", "verify", str(path)]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_a_required_policy_counts_for_signed_evidence_as_well(workplace: Path) -> None:
    """Who signs proves who decided, not that it was decided by the gate's rules."""
    policy = GatePolicy.from_mapping({"rule": "non_inferiority", "margin_pp": 50})
    lax = cases.register_case(workplace, "lax", wrong=60, policy=policy)
    signing.sign(lax, signing.load_key(workplace / "release.pem"))
    assert verify_version(*lax.at).ok
    found = verify_version(*lax.at, policy=GatePolicy())
    assert any("under the required policy the verdict is FAIL" in p for p in found.problems)

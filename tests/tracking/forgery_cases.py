"""A gated registry with signed evidence, and everything that a forger can make of it.

The forger may write everything that can be written: runs, artifacts, tags, the files of models. He
makes all digests fit again, knows the package, and has keys of his own, but none of the signers'.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import enforcement_cases as cases
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import signing_cases as signing
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from mlflow.tracking import MlflowClient
from mlflow_stores import make_store

from mlflow_degrade import GatePolicy, SampleScores
from mlflow_degrade.core.cache import digest_json
from mlflow_degrade.core.errors import DegradeError, PromotionRefusedError
from mlflow_degrade.registry.attestation import KNOWN
from mlflow_degrade.registry.evidence import EVIDENCE_TAG, POLICY_TAG, VERDICT_TAG, write_evidence
from mlflow_degrade.registry.gate_config import VARIABLE, GateConfig

Files = dict[str, bytes]

_RULES = {"margin_pp": 2, "min_samples": 300}
_LAX = GatePolicy.from_mapping({"rule": "non_inferiority", "margin_pp": 50})


@dataclass
class Scene:
    """A registry behind a gate that lists one signer, and versions in it.

    Attributes
    ----------
    honest, second, failing, lax : Case
        One to forge from; another that passes; one that fails, whose evidence nobody signs; one
        that the signer passed by a policy of 50 points.
    signers, policy : tuple and GatePolicy
        Those of the gate.
    model : Path
        Files of the honest version.
    """

    folder: Path
    honest: cases.Case
    second: cases.Case
    failing: cases.Case
    lax: cases.Case
    signers: tuple[Any, ...]
    policy: GatePolicy
    model: Path

    def files(self, case: cases.Case) -> Files:
        return {p.name: p.read_bytes() for p in signing.evidence_folder(case).iterdir()}

    def key(self, name: str) -> Any:
        return load_pem_private_key((self.folder / f"{name}.pem").read_bytes(), None)

    def refusal(self, case: cases.Case) -> str | None:
        """Why the registry refuses a version, asked as anybody would; None where it does not."""
        client = MlflowClient()
        try:
            client.set_registered_model_alias(case.name, "champion", case.version)
        except PromotionRefusedError as error:
            return str(error)
        client.delete_registered_model_alias(case.name, "champion")
        return None


def scenes(folder: Path) -> Iterator[Scene]:
    """The scene, for as long as the generator is open."""
    for name in ("release", "forger"):
        signing.make_key(folder / f"{name}.pem")
    signing.make_key(folder / "edwards.pem", "Ed25519")
    gate = {"signers": ["release.pub"], "policy": _RULES}
    (folder / "gate.yaml").write_text(json.dumps(gate))
    database = make_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder / "gate.yaml"))
        with cases.pointed_at(folder, database, f"gated+{database}"):
            key, gate_file = signing.load_key(folder / "release.pem"), GateConfig.load()
            assert gate_file.policy is not None
            honest = signing.register_judged(folder, "honest", signing.judge(), key=key)
            yield Scene(
                folder,
                honest,
                signing.register_judged(folder, "honest", signing.judge(n=700), word="2", key=key),
                signing.register_judged(folder, "bad", signing.judge(60), word="3"),
                signing.register_judged(
                    folder, "lax", signing.judge(60, policy=_LAX), word="4", key=key
                ),
                gate_file.signers,
                gate_file.policy,
                signing.model_folder(honest),
            )


# What is forged: evidence


@dataclass(frozen=True)
class Forgery:
    """Evidence that is not what the signer signed, for the bytes of one version."""

    name: str
    files: Files = field(repr=False)
    tags: dict[str, str] = field(default_factory=dict)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path


def other_value(value: Any) -> Any:
    """Something else of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if value < 1 else value / 2
    if isinstance(value, str):
        return value[:-1] + ("1" if value[-1:] != "1" else "2")
    return {"added": 1} if isinstance(value, dict) else ["added"] if value == [] else 1


def _changed(text: bytes, path: tuple[Any, ...], drop: bool) -> bytes:
    document = json.loads(text)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = other_value(inner[path[-1]])
    return json.dumps(document, indent=2).encode()


def _made_to_fit(files: Files) -> Files:
    """The same with every digest computed again, as a forger would."""
    files = dict(files)
    decision, manifest = (json.loads(files[f"{name}.json"]) for name in ("decision", "manifest"))
    policy = json.loads(files["policy.json"])
    for side in ("baseline", "candidate"):
        scores = _read(files[f"{side}.parquet"])
        manifest[side] = decision[side] = {
            "model": scores.model,
            "model_digest": scores.model_digest,
            "samples_digest": scores.digest(),
        }
    decision["policy"] = policy
    files["decision.json"] = json.dumps(decision, indent=2).encode()
    manifest["policy_digest"] = digest_json(policy)
    manifest["decision_digest"] = "sha256:" + hashlib.sha256(files["decision.json"]).hexdigest()
    files["manifest.json"] = json.dumps(manifest, indent=2).encode()
    return files


def _tags_for(files: Files) -> dict[str, str]:
    """Tags that say what the files give."""
    try:
        return {
            EVIDENCE_TAG: digest_json(json.loads(files["manifest.json"])),
            POLICY_TAG: digest_json(json.loads(files["policy.json"])),
            VERDICT_TAG: "PASS",
        }
    except (KeyError, ValueError):
        return {}


def _read(content: bytes) -> SampleScores:
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        Path(file.name).write_bytes(content)
        return SampleScores.read_parquet(Path(file.name))


def _changed_fields(files: Files) -> Iterator[Forgery]:
    for name in ("decision.json", "policy.json", "manifest.json", "artifact.json"):
        for path in _leaves(json.loads(files[name])):
            for drop in (False, True):
                changed = {**files, name: _changed(files[name], path, drop)}
                what = f"{name}: {'.'.join(map(str, path))} {'dropped' if drop else 'changed'}"
                yield Forgery(what, changed, _tags_for(changed))
                if not drop and name != "artifact.json":
                    fits = _made_to_fit(changed)
                    yield Forgery(f"{what}, made to fit", fits, _tags_for(fits))
        added = json.dumps({**json.loads(files[name]), "added": 1}).encode()
        yield Forgery(f"{name}: a key added", {**files, name: added}, _tags_for(files))
    for old in (0, 1, 3):
        decision = json.loads(files["decision.json"]) | {"schema_version": old}
        fits = _made_to_fit({**files, "decision.json": json.dumps(decision).encode()})
        yield Forgery(f"decision.json: schema version {old}", fits, _tags_for(fits))


def _changed_samples(files: Files) -> Iterator[Forgery]:
    for side in ("baseline", "candidate"):
        name = f"{side}.parquet"
        table = pq.read_table(io.BytesIO(files[name]))
        variants: dict[str, pa.Table] = {
            "a row dropped": table.slice(1),
            "a row twice": pa.concat_tables([table, table.slice(0, 1)]),
            "rows reversed": table.take(pa.array(range(table.num_rows - 1, -1, -1))),
            "no rows": table.slice(0, 0),
            "no metadata": table.replace_schema_metadata(None),
        }
        for index, column in enumerate(table.column_names):
            values = table[column].to_pylist()
            values[0] = other_value(values[0])
            try:
                changed = pa.array(values, table.schema.field(column).type)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                changed = pa.array([None, *values[1:]], table.schema.field(column).type)
            variants[f"{column} changed"] = table.set_column(index, column, changed)
            variants[f"{column} dropped"] = table.drop_columns([column])
        for what, changed in variants.items():
            buffer = io.BytesIO()
            pq.write_table(changed, buffer)
            forged = {**files, name: buffer.getvalue()}
            yield Forgery(f"{name}: {what}", forged, _tags_for(forged))
            try:
                fits = _made_to_fit(forged)
            except (DegradeError, ValueError, KeyError):
                continue  # no scores any more
            yield Forgery(f"{name}: {what}, made to fit", fits, _tags_for(fits))
    sides = {"baseline.parquet": files["candidate.parquet"]}
    yield Forgery(
        "both sides the candidate", fits := _made_to_fit({**files, **sides}), _tags_for(fits)
    )


def _swapped(files: Files, second: Files) -> Iterator[Forgery]:
    """Each part, and each two, from evidence that the signer signed for another version."""
    names = [name for name in files if files[name] != second[name]]
    for some in (*itertools.combinations(names, 1), *itertools.combinations(names, 2)):
        forged = {**files, **{name: second[name] for name in some}}
        yield Forgery(f"{' and '.join(some)} of another version", forged, _tags_for(forged))
    yield Forgery("all of another version", second, _tags_for(second))
    signed = {name: second[name] for name in ("attestation.json", "signer.pem", "model.sig")}
    yield Forgery("signatures of another version", {**files, **signed}, _tags_for(files))


def _missing_and_added(files: Files) -> Iterator[Forgery]:
    for name in files:
        forged = {n: content for n, content in files.items() if n != name}
        yield Forgery(f"{name} missing", forged, _tags_for(files))
        yield Forgery(f"{name} empty", {**files, name: b""}, _tags_for(files))
        yield Forgery(f"{name} is garbage", {**files, name: b"\x00\xff{"}, _tags_for(files))
    # Rounds that nobody measured, among them.
    more = [name for name in KNOWN if name not in files]
    for name in ("notes.txt", "decision2.json", "attestation2.json", *more):
        yield Forgery(f"{name} added", {**files, name: b"{}"}, _tags_for(files))


# What is forged: signatures


def _pae(payload: bytes, kind: str = "application/vnd.in-toto+json") -> bytes:
    """What DSSE signs, from its specification: the forger has no use for our code."""
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)


def _envelope(payload: bytes, keyid: str, sig: bytes, **more: Any) -> bytes:
    return json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"keyid": keyid, "sig": base64.b64encode(sig).decode()}],
            **more,
        }
    ).encode()


def _signatures(scene: Scene, files: Files) -> Iterator[Forgery]:
    honest = json.loads(files["attestation.json"])
    payload = base64.b64decode(honest["payload"])
    keyid = honest["signatures"][0]["keyid"]
    release, forger, edwards = (scene.key(name) for name in ("release", "forger", "edwards"))
    forger_id = signing.load_key(scene.folder / "forger.pem").signer.fingerprint
    forger_pem = (scene.folder / "forger.pub").read_bytes()
    sha256 = ec.ECDSA(hashes.SHA256())

    def signed(attestation: bytes, **more: bytes) -> Files:
        return {**files, "attestation.json": attestation, **more}

    def by_release(statement: Any) -> bytes:
        text = json.dumps(statement).encode()
        return _envelope(text, keyid, release.sign(_pae(text), sha256))

    good = base64.b64decode(honest["signatures"][0]["sig"])
    r, s = decode_dss_signature(good)
    own = forger.sign(_pae(payload), sha256)
    stripped = {k: v for k, v in files.items() if k not in ("attestation.json", "signer.pem")}
    forged: dict[str, Files] = {
        "stripped": stripped,
        "by the forger": signed(_envelope(payload, forger_id, own)),
        "by the forger, with his key": signed(
            _envelope(payload, forger_id, own), **{"signer.pem": forger_pem}
        ),
        "by the forger in the signer's name": signed(_envelope(payload, keyid, own)),
        "by the forger in the signer's name, with his key": signed(
            _envelope(payload, keyid, own), **{"signer.pem": forger_pem}
        ),
        "the forger's key next to an honest signature": {**files, "signer.pem": forger_pem},
        "by an Ed25519 key": signed(_envelope(payload, keyid, edwards.sign(_pae(payload)))),
        "an HMAC with the public key as its secret": signed(
            _envelope(payload, keyid, hmac.digest(files["signer.pem"], _pae(payload), "sha256"))
        ),
        "another hash": signed(
            _envelope(payload, keyid, release.sign(_pae(payload), ec.ECDSA(hashes.SHA512())))
        ),
        "raw r and s": signed(
            _envelope(payload, keyid, r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        ),
        "r and s are 0": signed(_envelope(payload, keyid, bytes.fromhex("3006020100020100"))),
        "without the type in front": signed(
            _envelope(payload, keyid, release.sign(payload, sha256))
        ),
        "algorithm none": signed(
            json.dumps(
                {**honest, "signatures": [{"keyid": keyid, "sig": "", "alg": "none"}]}
            ).encode()
        ),
        "signature cut": signed(_envelope(payload, keyid, good[:-1])),
        "signature longer": signed(_envelope(payload, keyid, good + b"\x00")),
        "signature bent": signed(_envelope(payload, keyid, good[:-1] + bytes([good[-1] ^ 1]))),
        "payload bent": signed(_envelope(payload + b" ", keyid, good)),
        "of another type": signed(_envelope(payload, keyid, good, payloadType="text/plain")),
        "signed as another type": signed(
            _envelope(
                payload,
                keyid,
                release.sign(_pae(payload, "text/plain"), sha256),
                payloadType="text/plain",
            )
        ),
        "no statement but JSON": signed(by_release("PASSED")),
        "no JSON": signed(_envelope(b"PASS", keyid, release.sign(_pae(b"PASS"), sha256))),
        "twice in one name": signed(
            json.dumps({**honest, "signatures": [*honest["signatures"]] * 2}).encode()
        ),
        "dressed as sigstore's": signed(
            json.dumps(
                {
                    "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
                    "dsseEnvelope": honest,
                }
            ).encode()
        ),
        "that of the model, in its bundle": signed(files["model.sig"]),
        "nested deeply": signed(b"[" * 100_000 + b"]" * 100_000),
    }
    # Signed by the very key for something else: another statement proves nothing here.
    model = json.loads(files["model.sig"])["dsseEnvelope"]
    model["signatures"][0]["keyid"] = keyid
    model.setdefault("payloadType", "application/vnd.in-toto+json")
    forged["that of the model"] = signed(json.dumps(model).encode())
    statement = json.loads(payload)
    forged |= {
        f"statement: {what}": signed(by_release(_with(statement, *change)))
        for what, change in {
            "older type": (("_type",), "https://in-toto.io/Statement/v0.1"),
            "another predicate": (("predicateType",), "https://slsa.dev/provenance/v1"),
            "FAILED": (("predicate", "result"), "FAILED"),
            "WARNED": (("predicate", "result"), "WARNED"),
            "passed as a word": (("predicate", "result"), "PASS"),
            "no subjects": (("subject",), []),
            "no model": (("subject",), statement["subject"][1:]),
            "no evidence": (("subject",), statement["subject"][:1]),
            "a subject twice": (("subject",), [*statement["subject"], statement["subject"][0]]),
            "another model": (("subject", 0, "digest", "sha256"), 64 * "0"),
            "another evidence": (("subject", 1, "digest", "sha256"), 64 * "0"),
            "a weaker digest": (("subject", 0, "digest"), {"md5": 32 * "0"}),
            "no files": (("predicate", "configuration"), []),
            "no predicate": (("predicate",), None),
        }.items()
    }
    for index, item in enumerate(statement["predicate"]["configuration"]):
        less = [i for i in statement["predicate"]["configuration"] if i is not item]
        forged[f"statement: without {item['name']}"] = signed(
            by_release(_with(statement, ("predicate", "configuration"), less))
        )
        name = item["name"]
        kept = {n: content for n, content in files.items() if n != name}
        attestation = forged[f"statement: without {name}"]["attestation.json"]
        if name != "model.sig":  # of an Ed25519 key there is none
            forged[f"statement: without {name}, which is missing"] = {
                **kept,
                "attestation.json": attestation,
            }
        path = ("predicate", "configuration", index, "digest", "sha256")
        forged[f"statement: another {item['name']}"] = signed(
            by_release(_with(statement, path, 64 * "0"))
        )
    for key, wrong in itertools.product(
        ("payload", "payloadType", "signatures"), (None, 1, "", "!!!", [], {}, [1], [{}], [None])
    ):
        forged[f"envelope: {key} is {wrong!r}"] = signed(
            json.dumps({**honest, key: wrong}).encode()
        )
    for key, wrong in itertools.product(("keyid", "sig"), (None, 1, "", "!!!", [])):
        bent = [{**honest["signatures"][0], key: wrong}]
        forged[f"envelope: {key} of the signature is {wrong!r}"] = signed(
            json.dumps({**honest, "signatures": bent}).encode()
        )
    for name, content in forged.items():
        yield Forgery(f"signature: {name}", content, _tags_for(files))


def _with(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    document = json.loads(json.dumps(document))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


def _invented(scene: Scene, files: Files) -> Iterator[Forgery]:
    """Perfect scores that no model gave, and rules that anything passes."""
    for what, judged in {
        "better scores": signing.judge(0, n=650),
        "a laxer policy": signing.judge(60, policy=_LAX),
        "the honest rules": signing.judge(60),
        "few samples": signing.judge(0, n=299),
    }.items():
        decision, paired = judged(scene.honest.digest)
        with tempfile.TemporaryDirectory() as scratch:
            write_evidence(Path(scratch), decision, paired)
            made = {p.name: p.read_bytes() for p in Path(scratch).iterdir()}
        invented = {**made, "artifact.json": files["artifact.json"]}
        yield Forgery(f"{what}, unsigned", invented, _tags_for(made))
        borrowed = {**files, **made}
        yield Forgery(f"{what}, under an honest signature", borrowed, _tags_for(made))


def all_forgeries(scene: Scene) -> list[Forgery]:
    """Every kind there is, each under its own name."""
    files, second = scene.files(scene.honest), scene.files(scene.second)
    found = [
        *_changed_fields(files),
        *_changed_samples(files),
        *_swapped(files, second),
        *_missing_and_added(files),
        *_signatures(scene, files),
        *_invented(scene, files),
    ]
    assert len({f.name for f in found}) == len(found) >= 200
    return found

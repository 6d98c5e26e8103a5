"""Secrets are hidden wherever something leaves the process, and nothing else is."""

from __future__ import annotations

import pytest

from mlflow_degrade.core.errors import ModelError, redact, redact_value

SECRET = "s3cr3t-Value"


@pytest.mark.parametrize(
    "text",
    [
        f"pretrained=org/m,token={SECRET},dtype=bfloat16",
        f"api_key={SECRET}",
        f"model=gpt,OPENAI_API_KEY={SECRET}",
        f"hf_token='{SECRET}'",
        f'password="{SECRET}"',
        f"aws_secret_access_key={SECRET}&region=eu",
        f"base_url=https://user:{SECRET}@host:8000/v1",
        f"postgresql+psycopg2://mlflow:{SECRET}@db/mlflow",
        f"{{'api_key': '{SECRET}', 'n': 3}}",
        f'{{"headers": {{"Authorization": "{SECRET}"}}}}',
        f"header Authorization: Bearer {SECRET}",
    ],
)
def test_hidden(text: str) -> None:
    assert SECRET not in redact(text)
    assert redact(redact(text)) == redact(text)
    assert SECRET not in str(ModelError(f"cannot load ({text})"))


@pytest.mark.parametrize(
    "text",
    [
        "pretrained=org/m,tokenizer=org/t,max_tokens=128,add_bos_token=True,eos_token=</s>",
        "tokens=5, n_tokens=7; the token 'x' is unknown",
        "https://host/path?page=2 and models:/chat@champion",
        "{'tokenizer': 'org/t', 'pad_token': '<pad>'}",
        "an author@example.org wrote it",
    ],
)
def test_left_alone(text: str) -> None:
    assert redact(text) == text


def test_in_what_json_holds() -> None:
    value = {
        "config": {"model_args": {"token": SECRET, "use_auth_token": True, "pretrained": "m"}},
        "list": [f"token={SECRET}", 3, None],
        "api_key": {"nested": SECRET},
    }
    assert redact_value(value) == {
        "config": {"model_args": {"token": "***", "use_auth_token": True, "pretrained": "m"}},
        "list": ["token=***", 3, None],
        "api_key": "***",
    }


def test_private_keys_are_hidden_whole_and_cut() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMB\n-----END PRIVATE KEY-----"
    assert redact(f"key {key!r} of me") == "key '***' of me"
    assert "MIGH" not in redact(key[:40])
    public = key.replace("PRIVATE", "PUBLIC")
    assert redact(public) == public

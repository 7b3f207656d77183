from __future__ import annotations

import pytest

from ds_llama.tracking import redact


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "apiKey",
        "WANDB_API_KEY",
        "hubToken",
        "HF_TOKEN",
        "client_secret",
        "db.password",
        "aws-secret-access-key",
        "auth",
        "apikey",
        "accesstoken",
    ],
)
def test_secret_names(name: str) -> None:
    assert redact.is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["tokenizer", "tokens_seen", "author", "every_steps", "keep_last", "lr", "HOME"]
)
def test_other_names(name: str) -> None:
    assert not redact.is_secret_name(name)


def test_text_under_secret_names_is_removed_and_numbers_stay() -> None:
    tree = {
        "num_key_value_heads": 8,
        "pad_token_id": None,
        "eos_token_id": [1, 2],
        "tokenizer": "out/tokenizer.model",
        "api_key": "0123456789",
        "nested": [{"password": ["a", "b"]}, {"token": {"value": "x"}}, {"lr": 3e-4}],
    }
    assert redact.without(tree, []) == {
        **tree,
        "api_key": redact.REMOVED,
        "nested": [{"password": redact.REMOVED}, {"token": redact.REMOVED}, {"lr": 3e-4}],
    }


def test_secret_values_are_removed_wherever_they_stand() -> None:
    environment = {
        "WANDB_API_KEY": "abcdef123456",
        "HF_TOKEN": "abcdef123456789",
        "MY_TOKEN": "yes",
        "SSH_AUTH_SOCK": "/tmp/ssh/agent",
        "HOME": "/home/abcdefgh",
    }
    secret = redact.values(environment)
    assert secret == ["abcdef123456789", "abcdef123456"]
    tree = {"data": ["say abcdef123456789 here", "abcdef123456", "/home/abcdefgh"]}
    assert redact.without(tree, secret) == {
        "data": ["say <removed> here", "<removed>", "/home/abcdefgh"]
    }


def test_users_of_urls_are_removed() -> None:
    assert redact.clean("https://me:pw@host/x?y=a@b", []) == "https://<removed>@host/x?y=a@b"
    assert redact.clean("https://host/x", []) == "https://host/x"

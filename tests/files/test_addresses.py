"""Nothing that opens a door is shown."""

import pytest

from actionzoo.files.addresses import without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:word@host/k", "https://***@host/k"),
        ("https://me@host/k", "https://***@host/k"),
        ("postgresql://user:word@db.example/mlflow", "postgresql://***@db.example/mlflow"),
        ("mysql+pymysql://user:w@rd@db:3306/mlflow", "mysql+pymysql://***@db:3306/mlflow"),
        ("postgresql://user:a/b@db/mlflow", "postgresql://***@db/mlflow"),
        ("postgresql://user:p%40ss@db/mlflow", "postgresql://***@db/mlflow"),
        ("https://h/k?X-Amz-Signature=0f&x=1 came", "https://h/k?*** came"),
        ("https://h/k?s=1: refused", "https://h/k?***: refused"),
        ("https://h/k#access_token=0f", "https://h/k?***"),
        ("s3://KEY:word@bucket/x", "s3://***@bucket/x"),
        ("'https://me:word@h/k?s=1' failed", "'https://***@h/k?***' failed"),
        ("host=db password=word dbname=x", "host=db password=*** dbname=x"),
        ("password='two words'", "password=***"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "***"),
    ],
)
def test_secrets_are_hidden(text, shown):
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://host/k400_train.tgz",
        "http://127.0.0.1:5000",
        "file:///disk/mirror",
        "folder:///videos/me@home",
        "sqlite:///mlflow.db",
        "models:/NAME@champion",
        "evaluate@slowfast_r50",
        "me@example.org",
        "6 tokens of 7",
    ],
)
def test_what_is_no_secret_stays(text):
    assert without_secrets(text) == text

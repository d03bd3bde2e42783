"""Addresses as they may be shown: in logs, errors, reports, tables of processes and MLflow."""

import re

_CREDENTIALS = re.compile(r"(?<=//)[^/?#\s]*@")
_QUERY = re.compile(r"(?<![\w<])([a-z][a-z0-9+.-]*://[^\s?#'\"<>]*)\?[^\s#'\"<>]*", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """`text` with the addresses in it stripped of user names, passwords and queries, where keys and signatures stand.

    https://me:word@host/k?X-Amz-Signature=0f -> https://***@host/k?***
    """
    return _QUERY.sub(r"\1?***", _CREDENTIALS.sub("***@", text))

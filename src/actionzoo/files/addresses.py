"""Addresses as they may be shown: in logs, errors, reports, tables of processes and MLflow."""

import re

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
# up to the last @ before the path: a password may hold one, and a slash where nobody encoded it
_CREDENTIALS = re.compile(rf"({_SCHEME})(?!/)[^\s'\"<>]*@(?=[^\s/?#@'\"<>]+)")
_QUERY = re.compile(rf"({_SCHEME}[^\s?#'\"<>]*)[?#][^\s'\"<>]*(?<![:;,.)])")
_ASSIGNED = re.compile(
    r"(?i)\b([a-z_-]*(?:password|passwd|secret|token|signature|credential|api[_-]?key|access[_-]?key)[a-z_-]*\s*[=:]\s*)"
    r"(\"[^\"]*\"|'[^']*'|[^\s&;,'\"]+)"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}")
_KNOWN_TOKENS = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})\b")


def without_secrets(text: str) -> str:
    """`text` with the addresses in it stripped of user names, passwords, queries and fragments, where keys and
    signatures stand; and of what is called a password, token or the like, as in `password=word`.

    https://me:word@host/k?X-Amz-Signature=0f -> https://***@host/k?***
    """
    text = _QUERY.sub(r"\1?***", _CREDENTIALS.sub(r"\1***@", text))
    text = _BEARER.sub(r"\1 ***", _ASSIGNED.sub(r"\1***", text))
    return _KNOWN_TOKENS.sub("***", text)

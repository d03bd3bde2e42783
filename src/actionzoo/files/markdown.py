"""Texts in Markdown."""

import html


def escaped(text: str, keep: str = "") -> str:
    """Text escaped so that Markdown shows it as it is, also in a table; signs in `keep` stay Markdown."""
    text = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{sign}" if sign in "\\`*[]|" and sign not in keep else sign for sign in text)


def fenced(text: str) -> str:
    """Lines that Markdown shows as they are, in a block of their own."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"

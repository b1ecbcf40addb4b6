"""Reading the pages of the documentation: their sections, tables and blocks of code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language; "" is a fence without one."""
    return [code for kind, code in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if kind == language]


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"no section {heading!r}"
    return found[1]


def tables(text: str) -> dict[str, list[list[str]]]:
    """The tables by the first cell of their heading, as rows of cells."""
    result: dict[str, list[list[str]]] = {}
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for found in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        head, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in found.splitlines()]
        result[head[0]] = rows
    return result


def code_in(cell: str) -> str:
    found = re.fullmatch(r"`(.+?)`", cell)
    assert found, f"expected `code`, got {cell}"
    return found[1]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def matches(pattern: str, text: str) -> bool:
    """Whether a message is the documented one, in which … stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), text, re.S) is not None

"""Texts that strangers might send: generated, so that nothing of this kind has to lie in a repository."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ESCAPE: Final = "\x1b]52;c;Y2FuYXJ5\x07\x1b[31m\x1b]8;;http://canary.invalid\x07"
"""Writes to the clipboard, colours, links: what a terminal would obey."""
TWISTS: Final = "\u202e\u2066\u200b\ufeff\x9b"
"""Turns text round, hides it, or is the one-byte form of an escape."""
SCRIPT: Final = '<script>document.title="canary"</script><img src=x onerror="document.title=\'canary\'">'
MARKUP: Final = "[red]canary[/red][link=http://canary.invalid]x[/link]"


def aliases(levels: int, width: int, item: str = "x") -> str:
    """Aliases of aliases: `width ** levels` values in a few hundred bytes."""
    lines = [f"a0: &a0 [{', '.join([item] * width)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def merges(levels: int, width: int = 9) -> str:
    """Merge keys of merge keys, which a loader writes out as it reads."""
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * width)}]}}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def yaml_texts() -> dict[str, str | bytes]:
    """Name -> text or bytes that no reader of YAML may take, whatever the file is about."""
    deep = 3000
    tags = ("!!python/object/apply:os.system [touch canary]", "!function os.system", "!include /etc/passwd")
    more = (
        "!!python/name:os.system ''",
        "!custom x",
        "!!binary aGk=",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!pairs [a: 1]",
    )
    return {
        "396 bytes of aliases": aliases(9, 9),
        "aliases of mappings": aliases(9, 9, "{k: v}"),
        "merge keys of merge keys": merges(12),
        "an anchor in itself": "a: &a [*a]\n",
        "a mapping in itself": "a: &a {b: *a}\n",
        "lists nested": "a: " + "[" * deep + "]" * deep,
        "lists nested without end": "a: " + "[" * 900_000,
        "mappings nested": "a: " + "{a: " * deep + "1" + "}" * deep,
        "blocks nested": "\n".join(f"{' ' * i}a:" for i in range(1300)),
        "dashes nested": "- " * deep + "x",
        "questions nested": "? " * deep + "x",
        "ten megabytes": "a: " + "x" * 10_000_000,
        "ten megabytes of comments": "# x\n" * 2_500_000,
        "a megabyte of commas": "a: [" + "x," * 400_000 + "]",
        "a megabyte of colons": "a: {" + "x: 1," * 180_000 + "}",
        "a megabyte of anchors": "\n".join(f"k{i}: &n{i} 1" for i in range(60_000)),
        **{f"tag {tag.split(' ')[0]}": f"name: {tag}\n" for tag in (*tags, *more)},
        "tag by directive": "%TAG ! tag:yaml.org,2002:python/\n---\nname: !name:os.system ''\n",
        "tag spelt out": "name: !<tag:yaml.org,2002:python/name:os.system> ''\n",
        "key twice": "name: a\nname: b\n",
        "key twice, quoted": "name: a\n'name': b\n",
        "infinity": "a: .inf\n",
        "not a number": "a: .NaN\n",
        "beyond doubles": "a: 1.0e+999\n",
        "a number of 100,000 digits": "a: 1" + "0" * 100_000 + "\n",
        "octal": "a: 0777\n",
        "hexadecimal": "a: 0xff\n",
        "binary": "a: 0b11\n",
        "sexagesimal": "a: 1:30\n",
        "sexagesimal float": "a: 1:30.5\n",
        "a key that is a number": "1: a\n",
        "a key that is null": "~: a\n",
        "a key that is a list": "[a]: b\n",
        "a key that is a truth": "yes: a\n",
        "not UTF-8": b"name: caf\xe9\n",
        "UTF-16": "name: a\n".encode("utf-16"),
        "NUL": "name: a\0b\n",
        "escape": f"name: {ESCAPE}\n",
        "bell in quotes": 'name: "\x07"\n',
        "two documents": "a: 1\n---\nb: 1\n",
        "open bracket": "a: [b\n",
        "open quote": "a: 'b\n",
        "tab as indent": "a:\n\tb: 1\n",
        "alias of nothing": "a: *b\n",
        "anchor twice in a key": "&a &b c: d\n",
    }


def job_texts() -> dict[str, str]:
    """Name -> YAML that is sound, and no job."""
    return {
        "a list": "- a\n- b\n",
        "a text": "job\n",
        "a number": "12\n",
        "nothing": "",
        "only a comment": "# nothing\n",
        "null": "null\n",
        "a date": "2026-01-01\n",
        "a key of a megabyte": f"{'k' * 900_000}: 1\n",
        "a key with an escape": '"\\e]52;c;x\\a": 1\n',
        "a key that turns round": '"\\u202Ekey": 1\n',
        "a thousand keys": "".join(f"k{i}: 1\n" for i in range(1_000)),
    }


HOSTILE_NAMES: Final[Mapping[str, str]] = {
    "path": "../../canary",
    "absolute": "/tmp/canary",
    "shell": "$(touch canary);`id`|x",
    "dash": "--help",
    "dots": "..",
    "hidden": ".canary",
    "space": "a b",
    "empty": "",
    "long": "n" * 5000,
    "newline": "a\nb",
    "escape": "a" + ESCAPE,
    "twist": "a" + TWISTS,
    "markup": MARKUP,
    "script": SCRIPT,
    "nul": "a\0b",
    "quote": "a'\"b",
    "percent": "%s%n{0}",
}

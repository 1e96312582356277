"""Mutations of a tokenizer's files: bombs in patterns, templates that do not end, names of classes and files."""

# ruff: noqa: E501, RUF005 - tables: one line a case

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from evomerge.testing.hostile_model import Mutation, Victim, in_turn, nested, with_json, with_text

_JSON = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def _tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Victim], object]:
    def apply(victim: Victim) -> None:
        path = victim.folder / _JSON
        content = json.loads(path.read_text(encoding="utf-8"))
        found = change(content)
        path.write_text(json.dumps(content if found is None else found), encoding="utf-8")

    return apply


def split_by(pattern: str) -> Callable[[Victim], object]:
    """A tokenizer whose pre-tokenizer splits by a regular expression."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _tokenizer(lambda c: c.update(pre_tokenizer=split))


def _normalized(*steps: dict[str, Any]) -> Callable[[Victim], object]:
    return _tokenizer(lambda c: c.update(normalizer={"type": "Sequence", "normalizers": list(steps)}))


def _doubled(n: int) -> list[dict[str, Any]]:
    return [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * n


def _added(**fields: object) -> Callable[[Victim], object]:
    return _tokenizer(lambda c: c["added_tokens"].append({"id": 5, "content": "<x>", **_TOKEN, **fields}))


def _vocab(change: Callable[[dict[str, Any]], object]) -> Callable[[Victim], object]:
    return _tokenizer(lambda c: change(c["model"]["vocab"]))


def _patterns() -> list[Mutation]:
    bombs = {
        "nested plus": r"(a+)+$",
        "alternatives that overlap": r"(a|a)*$",
        "nested star": r"(\s*)*x",
        "nested in a lookahead": r"(?=(a+)+$)b",
        "nested counts": r"(a{1,50}){1,50}$",
        "named group": r"(?<n>a+)+$",
        "fifteen stars": "a*" * 15 + "b",
        "of a hundred thousand": "a?" * 50_000 + "a" * 50_000,
        "backreference": r"(a+)(\1)+$",
        "hidden by comments": r"(?#[)(?:a|a){20}(?<!a)(?#])",
        "hidden by free spacing": "(?x)#[\n(?:a|a){20}(?<!a) #]",
        "absent": "(?~zb)" * 6 + "(?<!a)",
        "alternatives in a row": "(?:a|a)" * 20 + "(?<!a)",
        "stars in alternatives in a row": "(?:a*a*a*|b)" * 3 + "(?<!a)",
        "that is none": r"(((",
    }
    made = [Mutation(f"pattern: {name}", "tokenizer", split_by(text), "pattern") for name, text in bombs.items()]
    regex = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
    return made + [
        Mutation("normalizer: a bomb", "tokenizer", _normalized(regex), "pattern"),
        Mutation("normalizer: sixty doublings", "tokenizer", _normalized(*_doubled(60)), "times longer"),
        Mutation("normalizer: a megabyte", "tokenizer", _normalized({"type": "Replace", "pattern": {"String": " "}, "content": "x" * 1_000_000}), "times longer"),
        Mutation("normalizer: prepends a megabyte", "tokenizer", _normalized({"type": "Prepend", "prepend": "x" * 1_000_000}), "prepend|times longer"),
        Mutation("a hundred thousand tokens around every text", "tokenizer", _tokenizer(lambda c: c.update(post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"x": {"id": "x", "ids": [1] * 100_000, "tokens": ["x"] * 100_000}}})), "post_processor"),
        Mutation("padding to a trillion", "tokenizer", _tokenizer(lambda c: c.update(padding={"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"})), "padding"),
        Mutation("padding to multiples of a trillion", "tokenizer", _tokenizer(lambda c: c.update(padding={"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 10**12, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"})), "padding"),
    ]  # fmt: skip


def _contents() -> list[Mutation]:
    t, any_ = "tokenizer", "tokenizer|loads|damaged"
    return [
        Mutation("tokenizer: not JSON", t, with_text(_JSON, "{"), "damaged"),
        Mutation("tokenizer: empty", t, with_text(_JSON, "{}"), "vocabulary"),
        Mutation("tokenizer: a list", t, with_text(_JSON, "[]"), "damaged"),
        Mutation("tokenizer: a pickle", t, with_text(_JSON, b"\x80\x04N."), "damaged"),
        Mutation("tokenizer: a key twice", t, with_text(_JSON, '{"model": {}, "model": {}}'), "stands twice"),
        Mutation("tokenizer: nested 3,000", t, with_text(_JSON, f'{{"model": {nested(3000)}}}'), "nested too deeply"),
        Mutation("tokenizer: sequences 200 deep", t, _tokenizer(lambda c: c.update(decoder=_sequence(200))), "nested too deeply"),
        Mutation("tokenizer: twelve million lists", t, with_text(_JSON, b'{"a":[' + b"[]," * 12_000_000 + b"1]}"), "values"),
        Mutation("tokenizer: of 101 MB", t, with_text(_JSON, b'{"a":"' + b"a" * 101_000_000 + b'"}'), "at most"),
        Mutation("tokenizer: no model", t, _tokenizer(lambda c: c.pop("model")), "vocabulary"),
        Mutation("tokenizer: model a text", t, _tokenizer(lambda c: c.update(model="BPE")), "vocabulary"),
        Mutation("tokenizer: model of no kind", t, _tokenizer(lambda c: c["model"].update(type="Trap")), any_),
        Mutation("tokenizer: vocab a number", t, _tokenizer(lambda c: c["model"].update(vocab=3)), "vocabulary"),
        Mutation("tokenizer: id negative", t, _vocab(lambda v: v.update({"x": -1})), "ids"),
        Mutation("tokenizer: id a text", t, _vocab(lambda v: v.update({"x": "1"})), "ids"),
        Mutation("tokenizer: id a float", t, _vocab(lambda v: v.update({"x": 1.5})), "ids"),
        Mutation("tokenizer: id a boolean", t, _vocab(lambda v: v.update({"x": True})), "ids"),
        Mutation("tokenizer: id 2^63", t, _vocab(lambda v: v.update({"x": 1 << 63})), "ids|beyond"),
        Mutation("tokenizer: id beyond the embedding", t, _vocab(lambda v: v.update({"x": 64})), "beyond the 64 rows"),
        Mutation("tokenizer: a token of a megabyte", t, _vocab(lambda v: v.update({"x" * 1_000_000: 999})), "beyond the 64 rows"),
        Mutation("tokenizer: a token with escapes", t, _vocab(lambda v: v.update({"\x1b[2J\u202e": 999})), r"\\x1b\[2J\\u202e"),
        Mutation("added: id beyond the embedding", t, _added(id=64), "beyond the 64 rows"),
        Mutation("added: id 2^40", t, _added(id=1 << 40), "beyond|ids"),
        Mutation("added: id negative", t, _added(id=-1), "added_tokens"),
        Mutation("added: id a text", t, _added(id="5"), "added_tokens"),
        Mutation("added: no content", t, _added(content=None), "added_tokens"),
        Mutation("added: content a list", t, _added(content=["x"]), "added_tokens"),
        Mutation("added: a text", t, _tokenizer(lambda c: c.update(added_tokens="x")), "added_tokens"),
        Mutation("added: a number", t, _tokenizer(lambda c: c.update(added_tokens=1)), "added_tokens"),
        Mutation("added: of texts", t, _tokenizer(lambda c: c.update(added_tokens=["x"])), "added_tokens"),
        Mutation("unk that is no token", t, _tokenizer(lambda c: c["model"].update(unk_token="<nowhere>")), "unk"),
        Mutation("unk id out of range", t, _tokenizer(lambda c: c.update(model={"type": "Unigram", "unk_id": 10**6, "vocab": [["a", 0.0]], "byte_fallback": False})), "unk"),
        Mutation("merges of no texts", t, _tokenizer(lambda c: c.update(model={"type": "BPE", "vocab": {"a": 0}, "merges": [[1, 2]]})), any_),
        Mutation("pre-tokenizer of no kind", t, _tokenizer(lambda c: c.update(pre_tokenizer={"type": "Trap"})), any_),
        Mutation("decoder a text", t, _tokenizer(lambda c: c.update(decoder="x")), any_),
    ]  # fmt: skip


def _sequence(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "Fuse"}
    for _ in range(depth):
        found = {"type": "Sequence", "decoders": [found]}
    return found


def _settings() -> list[Mutation]:
    t = "tokenizer"
    trap = with_text("tokenization_trap.py", "raise SystemExit('code of a tokenizer ran')\n")
    make: list[tuple[str, dict[str, Any], str]] = [
        ("class of a module", {"tokenizer_class": "../../trap.Trap"}, "tokenizer_class"),
        ("class a list", {"tokenizer_class": ["Trap"]}, "tokenizer_class"),
        ("processor of a module", {"processor_class": "a/b.Trap"}, "processor_class"),
        ("auto_map a text", {"auto_map": "tokenization_trap.Trap"}, "auto_map"),
        ("files elsewhere", {"fast_tokenizer_files": ["../outside/tokenizer.4.0.0.json"]}, "fast_tokenizer_files"),
        ("a vocabulary elsewhere", {"vocab_file": "../outside/config.json"}, "vocab_file"),
        ("a tokenizer elsewhere", {"tokenizer_file": "/etc/hostname"}, "tokenizer_file"),
        ("length a text", {"model_max_length": "long"}, "model_max_length"),
        ("length negative", {"model_max_length": -1}, "model_max_length"),
        ("eos a number", {"eos_token": 5}, "eos_token"),
        ("eos of a megabyte", {"eos_token": "x" * 1_000_000}, "eos_token"),
        ("eos a list", {"eos_token": ["<eos>"]}, "eos_token"),
        ("template a number", {"chat_template": 5}, "chat_template"),
        ("template of numbers", {"chat_template": [{"name": "default", "template": 5}]}, "chat_template"),
        ("template of two megabytes", {"chat_template": "x" * 2_000_000}, "chat_template"),
        ("added tokens a list", {"added_tokens_decoder": []}, "added_tokens_decoder"),
        ("added tokens of texts", {"added_tokens_decoder": {"5": "x"}}, "added_tokens_decoder"),
        ("added tokens by name", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder"),
        ("added tokens at 10^15", {"added_tokens_decoder": {"1000000000000000": {"content": "x"}}}, "added_tokens_decoder"),
    ]  # fmt: skip
    made = [
        Mutation(f"settings: {name}", t, in_turn(trap, with_json(_SETTINGS, **f)), words) for name, f, words in make
    ]
    code = {"AutoTokenizer": ["tokenization_trap.Trap", "tokenization_trap.Trap"]}
    legal = "the tokenizer of transformers is used, the code beside it is never imported"
    return made + [
        Mutation("settings: auto_map", t, in_turn(trap, with_json(_SETTINGS, auto_map=code)), legal=legal),
        Mutation("settings: a vocabulary of another machine", t, with_json(_SETTINGS, vocab_file="/nowhere/vocab.json"), legal="there is no such file; transformers finds its own"),
        Mutation("settings: not JSON", t, with_text(_SETTINGS, "{"), "damaged"),
        Mutation("settings: nested", t, with_text(_SETTINGS, f'{{"x": {nested(3000)}}}'), "nested too deeply"),
        Mutation("added_tokens.json: ids of texts", t, with_text("added_tokens.json", '{"a": "b"}'), "ids"),
        Mutation("special_tokens_map.json: a list", t, with_text("special_tokens_map.json", "[]"), "damaged"),
        Mutation("template: of two megabytes", t, with_text(_TEMPLATE, "x" * 2_000_000), "chat template"),
        Mutation("tokenizer.model of nonsense", t, in_turn(lambda v: (v.folder / _JSON).unlink(), with_text("tokenizer.model", b"\x00" * 100)), "tokenizer|loads"),
    ]  # fmt: skip


HOSTILE_TEMPLATES = {
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "an import": "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "an attribute by filter": "{{ ''|attr('__class__')|attr('__base__')|list }}",
    "a format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "a file": "{% include '/etc/passwd' %}",
    "a namespace": "{{ namespace.__init__.__globals__ }}",
    "a loop without end": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a trillion": "{% for i in range(10**12) %}x{% endfor %}",
    "a giant text": "{{ 'x' * 10**10 }}",
    "a giant list": "{{ [0] * 10**10 }}",
    "a giant pad": "{{ 'x'.ljust(10**10) }}",
    "a giant format": "{{ '%010000000000d' % 1 }}",
    "doublings": "{% set ns = namespace(t='xxxxxxxx') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a power": "{{ 9**(9**9) }}",
    "broken": "{% for %}",
    "an error": "{{ raise_exception('no') }}",
}  # fmt: skip
"""Chat templates, each of which must be refused within a second or two when it is used; CANARY stands for a path."""


def tokenizer_mutations() -> tuple[Mutation, ...]:
    """All of them, but for templates, which are harmless until somebody chats."""
    return (*_patterns(), *_contents(), *_settings())

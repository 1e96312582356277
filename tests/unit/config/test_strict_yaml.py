"""YAML as a configuration language: what is read, what is refused, and what the messages say."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError, ModelError
from evomerge.strict_yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, Document, dump_yaml, parse_yaml


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError, match=r"^job\.yaml is not usable YAML: ") as caught:
        parse_yaml(text, "job.yaml")
    error = caught.value
    assert all((error.what, error.got, error.allowed, error.fix))
    return error


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [x, 0.5, true, null]\n", {"a": 1, "b": ["x", 0.5, True, None]}),
        ("a: 1_000\nb: -3\nc: +4\nd: 0\n", {"a": 1000, "b": -3, "c": 4, "d": 0}),
        ("a: 1.0e-4\nb: .5\nc: 1.\nd: 1_0.5\n", {"a": 1e-4, "b": 0.5, "c": 1.0, "d": 10.5}),
        ("a: 1e-4\n", {"a": "1e-4"}),
        ("a: 2026-07-01\nb: 2026-99-99\n", {"a": "2026-07-01", "b": "2026-99-99"}),
        ("a: '010'\nb: \"12:30\"\n", {"a": "010", "b": "12:30"}),
        ("a: No\nb: on\nc: ~\nd:\n", {"a": False, "b": True, "c": None, "d": None}),
        ("a: !!str 5\nb: !!float 1\nc: !!int '3'\n", {"a": "5", "b": 1.0, "c": 3}),
        ("a: &x {b: 1}\nc: *x\n", {"a": {"b": 1}, "c": {"b": 1}}),
        ("\ufeffa: ü €\n", {"a": "ü €"}),
        ("# only a comment\n", None),
        ("", None),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
    ],
)
def test_values(text: str, value: object) -> None:
    assert parse_yaml(text, "job.yaml").value == value


@pytest.mark.parametrize(
    ("text", "what", "got"),
    [
        ("a: 1\nb: 2\na: 3\n", "a key stands twice", r"'a' at line 3, and before at line 1"),
        ("x:\n  - {b: 1, b: 2}\n", "a key stands twice", r"'b' at line 2"),
        ("a: 1\n1: 2\n", "a key is not text", r"'1' at line 2"),
        ("a:\n  off: 2\n", "a key is not text", r"'off' at line 2"),
        ("? [a]\n: 1\n", "a key is not text", r"a collection at line 1"),
        ("b: &b {x: 1}\na:\n  <<: *b\n", "merge keys are not read", r"'<<' at line 3"),
        ("a: 1\nb: !foo {c: 1}\n", "a value has a tag", r"'!foo' at line 2"),
        ("a: !!set {x, y}\n", "a value has a tag", r"'!!set' at line 1"),
        ("a: !!binary aGVs\n", "a value has a tag", r"'!!binary' at line 1"),
        ("a: !!omap [x: 1]\n", "a value has a tag", r"'!!omap' at line 1"),
        ("a:\n  !!python/object/apply:os.system ['true']\n", "a value has a tag", r"python/object.* at line 2"),
        ("a: !!python/name:os.system\n", "a value has a tag", r"python/name.* at line 1"),
        ("a: !!int abc\n", "not what it looks like", r"'abc' at line 1"),
        ("a: !!int ''\n", "not what it looks like", r"'' at line 1"),
        ("a: !!bool maybe\n", "not what it looks like", r"'maybe' at line 1"),
        ("a: !!float x\n", "not what it looks like", r"'x' at line 1"),
        ("a: 010\n", "not what it looks like", r"'010' at line 1"),
        ("a: 0x1f\n", "not what it looks like", r"'0x1f' at line 1"),
        ("a: 0b_\n", "not what it looks like", r"'0b_' at line 1"),
        ("\na: 12:30:45\n", "not what it looks like", r"'12:30:45' at line 2"),
        ("a: 1:30.5\n", "not what it looks like", r"'1:30.5' at line 1"),
        ("a: " + "1" * 5000 + "\n", "not what it looks like", r"'1{40}' at line 1"),
        ("a: =\n", "a value has a tag", r"'!!value' at line 1"),
        ("a: 1\nb: .nan\n", "a number is not finite", r"\.nan at line 2"),
        ("a: -.inf\n", "a number is not finite", r"-\.inf at line 1"),
        ("a: 1.0e+999\n", "a number is not finite", r"at line 1"),
        ("a: 1\nb: \x00\n", "it does not parse", r"control character '\\x00' at line 2"),
        ("a: b\x07\n", "it does not parse", r"control character '\\x07' at line 1"),
        ("a: \udcff\n", "it does not parse", r"control character '\\udcff' at line 1"),
        ("a: [1,\n b: }\n", "it does not parse", r"at line 2, column 5"),
        ("a: *x\n", "it does not parse", r"undefined alias 'x' at line 1"),
        ("\ta: 1\n", "it does not parse", r"at line 1, column 1"),
        ("a: 1\n---\nb: 2\n", "it does not parse", r"another document at line 2"),
        ("%YAML 9.9\n---\na: 1\n", "it does not parse", r"at line 1"),
        ("a: 'open\n", "it does not parse", r"line"),
    ],
)
def test_what_is_refused(text: str, what: str, got: str) -> None:
    error = refused(text)
    assert what in error.what
    with pytest.raises(ConfigError, match=got):
        raise error


def test_depth_is_bounded_in_the_text_and_through_aliases() -> None:
    deepest = "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)
    assert parse_yaml(f"a: {deepest}", "job.yaml").value
    for text in (f"a: [{deepest}]", "[" * 100_000, "{a: " * 5000, "a: &a [*a]", "a: &a {b: {c: *a}}"):
        assert "nested too deeply" in refused(text).what
    chain = "a0: &a0 1\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 150))
    assert "line 65" in refused(chain).got  # every line alone is flat


def test_alias_bombs_stop_at_the_limit_and_soon() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    start = time.perf_counter()
    error = refused(bomb)
    assert "too many values" in error.what
    assert str(MAX_VALUES) in error.allowed
    assert "aliases" in error.fix
    assert time.perf_counter() - start < 5


def test_size_is_bounded() -> None:
    assert "too long" in refused("#" * (MAX_BYTES + 1)).what
    assert "too long" in refused("é" * (MAX_BYTES // 2 + 1)).what
    assert "too many values" in refused("a: [" + "1," * (2 * MAX_VALUES) + "]").what
    assert len(parse_yaml("[" + "1," * (MAX_VALUES - 1) + "]", "job.yaml").value) == MAX_VALUES - 1


def test_every_value_knows_its_line() -> None:
    document = parse_yaml("a:\n  - x\n  - b: 1\n    c: 2\nd: {e: 3}\n", "job.yaml")
    assert document.where(("a", 1, "c")) == "job.yaml:4 (a.1.c)"
    assert document.where(("d", "e")) == "job.yaml:5 (d.e)"
    assert document.where(("a", 1, "zzz", "y")) == "job.yaml:3 (a.1.zzz.y)"  # the nearest that there is
    assert document.where(()) == "job.yaml:1"
    assert Document("job", {}, {}).where(("a",)) == "job (a)"
    assert Document("job.yaml", {}, {("a",): 4}, frozenset({("a", "b")})).where(("a", "b", "c")) == "--set (a.b.c)"


def test_errors_are_placed_and_keep_their_kind() -> None:
    document = parse_yaml("a:\n  b: 1\n", "job.yaml")
    with pytest.raises(ModelError, match=r"Got: job\.yaml:2 \(a\.b\): it") as caught, document.placing("a", "b"):
        raise ModelError("What.", got="it", allowed="that", fix="so.")
    assert caught.value.exit_code == 3
    assert (caught.value.what, caught.value.allowed, caught.value.fix) == ("What.", "that", "so.")
    with pytest.raises(KeyError, match="other"), document.placing("a"):
        raise KeyError("other")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text("ab1:-", max_size=4), v))


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text("abc09.-_ #'é", min_size=1, max_size=8), VALUES, max_size=4))
@example({"a": "\x85", "b": "日本\u2028", "c": "\ufeff", "d": "\x00"})
def test_what_is_written_is_read_back(value: dict[str, object]) -> None:
    assert parse_yaml(dump_yaml(value), "job.yaml").value == value


def test_plain_letters_stay_readable() -> None:
    assert dump_yaml({"a": "日本"}) == "a: 日本\n"


@settings(deadline=None, max_examples=300)
@given(st.text("ab:-[]{}&*!|>'\"#%@, \n\t01.~<?=\x00é", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ConfigError):  # anything else would be a crash
        parse_yaml(text, "job.yaml")

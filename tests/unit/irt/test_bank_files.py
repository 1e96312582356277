"""Bank files: what goes in comes out, equal banks make equal files, and every kind of damage is one clear error."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.irt.bank import ItemBank
from evomerge.irt.bank_files import bank_for, read_bank, write_bank

ARRAYS = ("slopes", "intercepts", "noise", "constants", "mean", "covariance")


def bank_of(seed=0, n=5, d=2, link="logistic", **extra):
    rng = np.random.default_rng(seed)
    constants = np.where(rng.random(n) < 0.3, 0.1, np.nan)
    names = tuple(f"hash-{i}-é" for i in range(n))
    return ItemBank(
        names, rng.normal(size=(n, d)), rng.normal(size=n), rng.uniform(0.5, 2, n), constants, rng.normal(size=d),
        np.eye(d) * 1.5, link, 7, **{"settings": {"dimensions": d}, "provenance": {"files": ["a", "b"]}, **extra},
    )  # fmt: skip


def same(left, right):
    plain = all(getattr(left, k) == getattr(right, k) for k in ("items", "link", "n_models", "settings", "provenance"))
    return plain and all(np.array_equal(getattr(left, k), getattr(right, k), equal_nan=True) for k in ARRAYS)


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.tuples(st.integers(1, 8), st.integers(1, 5), st.sampled_from(["logistic", "normal"])))
def test_round_trip_is_exact_and_files_of_equal_banks_are_equal(tmp_path_factory, suffix, seed, shape):
    folder = tmp_path_factory.mktemp("banks")
    bank = bank_of(seed, *shape)
    write_bank(folder / f"a{suffix}", bank)
    found = read_bank(folder / f"a{suffix}")
    assert same(bank, found)
    write_bank(folder / f"b{suffix}", found)
    assert (folder / f"a{suffix}").read_bytes() == (folder / f"b{suffix}").read_bytes()


def test_json_is_plain_json_with_a_version(tmp_path):
    write_bank(tmp_path / "b.json", bank_of())
    head = json.loads((tmp_path / "b.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert (head["format"], head["version"]) == ("evomerge.bank", 1)
    assert head["items"][0] == "hash-0-é"


def test_npz_holds_no_pickles(tmp_path):
    write_bank(tmp_path / "b.npz", bank_of())
    with np.load(tmp_path / "b.npz", allow_pickle=False) as members:
        assert set(members.files) == {"head", *ARRAYS}
        assert all(members[name].dtype != object for name in members.files)


@pytest.mark.parametrize("name", ["bank", "bank.pkl", "bank.JSON"])
def test_suffix_is_checked(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot be written: its file type"):
        write_bank(tmp_path / name, bank_of())
    with pytest.raises(ConfigError, match="cannot be read: its file type"):
        read_bank(tmp_path / name)


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": object()}])
def test_provenance_must_be_json(tmp_path, bad):
    with pytest.raises(ConfigError, match="not plain JSON"):
        write_bank(tmp_path / "b.json", bank_of(provenance=bad))
    assert list(tmp_path.iterdir()) == []


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read\.\n  Got: .*No such file"):
        read_bank(tmp_path / "none.npz")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        read_bank(tmp_path / "folder.json")


DAMAGE = {
    "another format": ({"format": "other"}, "format 'other'"),
    "a newer version": ({"version": 2}, "newer evomerge"),
    "an odd version": ({"version": "1"}, "version '1'"),
    "a true version": ({"version": True}, "version True"),
    "no items": ({"items": None}, "list of texts"),
    "number items": ({"items": [1, 2, 3, 4, 5]}, "list of texts"),
    "an item twice": ({"items": ["a", "a", "b", "c", "d"]}, "each once"),
    "an item too few": ({"items": ["a"]}, "expected"),
    "an odd link": ({"link": "cubic"}, "link 'cubic'"),
    "odd models": ({"n_models": 1.5}, "n_models"),
    "negative models": ({"n_models": -1}, "n_models"),
    "odd settings": ({"settings": []}, "settings or provenance"),
    "a text slope": ({"slopes": [["1", "2"]] * 5}, "not a number"),
    "a null slope": ({"slopes": [[None, 1.0]] * 5}, "not finite"),
    "ragged slopes": ({"slopes": [[1.0, 2.0]] * 4 + [[1.0]]}, "not a number, or rows"),
    "a flag as a slope": ({"slopes": [[True, 1.0]] * 5}, "not a number"),
    "short intercepts": ({"intercepts": [1.0]}, "intercepts has shape"),
    "no noise": ({"noise": [0.0] * 5}, "noise must be positive"),
    "a scalar mean": ({"mean": 1.0}, "shape"),
    "an indefinite covariance": ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, "positive definite"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_json(tmp_path, kind):
    change, match = DAMAGE[kind]
    write_bank(tmp_path / "b.json", bank_of())
    value = {**json.loads((tmp_path / "b.json").read_text()), **change}
    (tmp_path / "b.json").write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=match):
        read_bank(tmp_path / "b.json")


@pytest.mark.parametrize("key", ["format", "version", "items", "link", "n_models", "settings", "provenance", *ARRAYS])
def test_missing_entries(tmp_path, key):
    write_bank(tmp_path / "b.json", bank_of())
    value = json.loads((tmp_path / "b.json").read_text())
    del value[key]
    (tmp_path / "b.json").write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="not a usable item bank"):
        read_bank(tmp_path / "b.json")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_files_that_are_no_json(tmp_path, raw):
    (tmp_path / "b.json").write_bytes(raw)
    with pytest.raises(ConfigError, match="not a usable item bank"):
        read_bank(tmp_path / "b.json")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a bank file was unpickled",))


def npz_of(**members):
    buffer = io.BytesIO()
    np.savez(buffer, **members)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"PK\x03\x04 nonsense",
        pickle.dumps(Bomb()),
        npz_of(head=np.array([Bomb()], dtype=object)),
        npz_of(other=np.zeros(3)),
        npz_of(head=np.zeros(3)),
        npz_of(head=np.array("{")),
        npz_of(head=np.array('{"format": "evomerge.bank", "version": 1}')),
    ],
)
def test_files_that_are_no_npz_bank(tmp_path, raw):
    (tmp_path / "b.npz").write_bytes(raw)
    with pytest.raises(ConfigError, match="not a usable item bank"):
        read_bank(tmp_path / "b.npz")


def test_object_and_text_arrays_are_refused(tmp_path):
    write_bank(tmp_path / "b.npz", bank_of())
    with np.load(tmp_path / "b.npz") as members:
        good = dict(members)
    for bad in (np.array([Bomb()] * 5, dtype=object), np.array(["1"] * 5), np.ones(5, dtype=complex)):
        (tmp_path / "b.npz").write_bytes(npz_of(**{**good, "intercepts": bad}))
        with pytest.raises(ConfigError, match="not a usable item bank"):
            read_bank(tmp_path / "b.npz")


def read_or_refusal(path):
    try:
        return read_bank(path)
    except ConfigError as error:
        return error


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_changed_byte_is_refused_or_read_as_a_bank(tmp_path, suffix):
    path = tmp_path / f"b{suffix}"
    write_bank(path, bank_of())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for where in rng.integers(0, len(whole), size=150):
        raw = bytearray(whole)
        raw[where] ^= int(rng.integers(1, 256))
        path.write_bytes(raw)
        found = read_or_refusal(path)
        assert isinstance(found, ConfigError) or suffix == ".json" or same(found, bank_of())  # npz has checksums
        refused += isinstance(found, ConfigError)
    assert refused > 30


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_cut_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"b{suffix}"
    write_bank(path, bank_of())
    raw = path.read_bytes()
    for size in range(0, len(raw) - 2, max(1, len(raw) // 40)):
        path.write_bytes(raw[:size])
        with pytest.raises(ConfigError, match="not a usable item bank"):
            read_bank(path)


def test_npz_members_are_ordinary_zip_members(tmp_path):
    write_bank(tmp_path / "b.npz", bank_of())
    with zipfile.ZipFile(tmp_path / "b.npz") as archive:
        assert archive.testzip() is None


def test_bank_for_restricts_and_reorders():
    bank = bank_of(3)
    wanted = (bank.items[4], bank.items[1])
    match = bank_for(bank, wanted)
    assert (match.n_found, match.n_wanted) == (2, 2)
    assert match.bank.items == wanted
    theta = np.array([[0.3, -0.2]])
    assert match.bank.predict(theta) == pytest.approx(bank.predict(theta)[:, [4, 1]])
    assert match.bank.provenance == bank.provenance


def test_bank_for_says_how_many_match():
    bank = bank_of()
    assert bank_for(bank, (bank.items[0], "stranger")) == (None, 1, 2)
    assert bank_for(bank, ("stranger",)) == (None, 0, 1)
    assert bank_for(bank, ()) == (None, 0, 0)

"""What may be published: closed cases, and laws that hold for any set of licences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.publishing.licences import PERMISSIVE, UNSTATED, Verdict, check_publishable, judge

KNOWN = st.sampled_from([*sorted(PERMISSIVE), "llama3.1", "llama2", "gemma", "cc-by-nc-4.0", "cc-by-nd-4.0", "other"])


def gate(verdict: Verdict, name: str = "merge", *, accept: tuple[str, ...] = (), texts: tuple[str, ...] = ()) -> None:
    check_publishable(verdict, name, accept, texts)


def test_one_permissive_licence_is_inherited() -> None:
    verdict = judge({"a": "apache-2.0", "b": "Apache-2.0"})
    assert (verdict.licence, verdict.objections, verdict.needs_copy) == ("apache-2.0", {}, ())
    gate(verdict)


def test_different_permissive_licences_are_other_and_go_through() -> None:
    verdict = judge({"a": "apache-2.0", "b": "mit"})
    assert verdict.licence == "other"
    gate(verdict)


@pytest.mark.parametrize(
    ("licence", "why"),
    [
        ("cc-by-nc-4.0", "no commercial use"),
        ("CC-BY-NC-SA-4.0", "no commercial use"),
        ("qwen-research", "no commercial use"),
        ("cc-by-nd-4.0", "no derivatives"),
        ("other", "terms of its own"),
        (None, "nothing is known"),
    ],
)
def test_what_takes_a_decision_is_refused_until_it_is_accepted_by_name(licence: str | None, why: str) -> None:
    verdict = judge({"a": "mit", "b": licence})
    name = (licence or UNSTATED).lower()
    with pytest.raises(ConfigError, match=rf"{name} \(b\): .*{why}[\s\S]*Fix: .*--accept-licence {name}"):
        gate(verdict, texts=("LICENSE",))
    gate(verdict, accept=(name,), texts=("LICENSE",))


@pytest.mark.parametrize(
    ("stated", "meant", "why"),
    [
        ("CC BY-NC 4.0", "cc-by-nc-4.0", "no commercial use"),
        ("cc_by_nc_4.0", "cc-by-nc-4.0", "no commercial use"),
        ("cc\u2011by\u2011nd\u20114.0", "cc-by-nd-4.0", "no derivatives"),
        ("\uff43\uff43-by-nc-4.0 ", "cc-by-nc-4.0", "no commercial use"),
        (" - ", UNSTATED, "nothing is known"),
        ("unknown", "unknown", "no licence that is known"),
        ("apple-amlr", "apple-amlr", "no licence that is known"),
        ("all rights reserved\x1b[2J", "all-rights-reserved-2j", "no licence that is known"),
    ],
)
def test_no_spelling_goes_round_the_gate(stated: str, meant: str, why: str) -> None:
    verdict = judge({"a": stated})
    assert verdict.parents == {"a": meant}
    with pytest.raises(ConfigError, match=rf"{meant} \(a\): .*{why}"):
        gate(verdict, texts=("LICENSE",))
    gate(verdict, accept=(stated,) if meant != UNSTATED else (UNSTATED,), texts=("LICENSE",))


def test_odd_spellings_of_plain_licences_mean_the_same() -> None:
    verdict = judge({"a": "Apache 2.0", "b": " apache-2.0"})
    assert (verdict.licence, verdict.objections) == ("apache-2.0", {})
    assert judge({"a": " Llama3.1"}).name_prefix == "Llama"


def test_llama_names_itself() -> None:
    verdict = judge({"a": "llama3.1", "b": "llama3.1"})
    assert (verdict.licence, verdict.notices) == ("llama3.1", ("Built with Llama.",))
    with pytest.raises(ConfigError, match=r"another name[\s\S]*begins with 'Llama'"):
        gate(verdict, "merge", texts=("LICENSE",))
    with pytest.raises(ConfigError, match=r"must travel with the weights[\s\S]*llama3\.1"):
        gate(verdict, "Llama-merge")
    gate(verdict, "Llama-merge", texts=("LICENSE",))


def test_llama_2_asks_for_its_text_but_for_no_name() -> None:
    verdict = judge({"a": "llama2"})
    assert (verdict.notices, verdict.name_prefix) == ((), "")
    gate(verdict, texts=("LICENSE.txt",))


def test_nothing_is_accepted_that_nobody_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"nothing to accept[\s\S]*--accept-licence gemma"):
        gate(judge({"a": "mit"}), accept=("gemma",))


@given(st.dictionaries(st.text("abcd", min_size=1, max_size=3), st.none() | KNOWN, min_size=1, max_size=5))
def test_nothing_unstated_or_restricted_ever_passes_unasked(stated: dict[str, str | None]) -> None:
    verdict = judge(stated)
    sensitive = {"cc-by-nc-4.0", "cc-by-nd-4.0", "other", None}
    assert bool(verdict.objections) == bool(sensitive & set(stated.values()))
    assert (verdict.licence != "other") == (
        len(set(stated.values())) == 1 and not {"other", None} & set(stated.values())
    )
    if verdict.objections:
        with pytest.raises(ConfigError, match="call for a decision"):
            gate(verdict, "Llama-merge", texts=("LICENSE",))
    gate(verdict, "Llama-merge", accept=tuple(verdict.objections), texts=tuple(f"LICENSE.{i}" for i in range(5)))


def test_no_parents_no_licence() -> None:
    with pytest.raises(ValueError, match="without parents"):
        judge({})


def test_every_licence_that_must_travel_has_a_text_of_its_own() -> None:
    verdict = judge({"a": "llama3.1", "b": "gemma"})
    accepted = tuple(verdict.objections)
    with pytest.raises(ConfigError, match=r"too few licence texts[\s\S]*llama3\.1, gemma; 1 files"):
        gate(verdict, "Llama-merge", accept=accepted, texts=("LICENSE",))
    gate(verdict, "Llama-merge", accept=accepted, texts=("LICENSE.a", "LICENSE.b"))

"""What may stand in scripts and manifests, and what is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.launching.words import (
    as_yaml,
    check_cache,
    check_count,
    check_dns_label,
    check_path,
    check_plain,
    check_setting,
    check_text,
    slug,
)

HOSTILE = ("a\nb", "a\0b", "a\tb", "a\x1b[2Jb", "", "x" * 5000, "a\u2028b")


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written into a script"):
        check_text("The name", text)


@pytest.mark.parametrize("text", ["gpu;reboot", "$(id)", "-x", "a b", "a'b", 'a"b', "a\n#SBATCH --wrap=id", "../x", ""])
def test_a_partition_is_a_plain_word(text: str) -> None:
    with pytest.raises(ConfigError, match="not a plain word"):
        check_plain("The partition", text)


@pytest.mark.parametrize("text", ["A", "1a", "a_b", "a-", "x" * 64, "", "a.b", "a\nb"])
def test_names_of_kubernetes_are_labels(text: str) -> None:
    with pytest.raises(ConfigError, match="Kubernetes"):
        check_dns_label("The name", text)


def test_relative_paths_and_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="not an absolute path"):
        check_path("The run directory", "runs/first")
    with pytest.raises(ConfigError, match="out of range"):
        check_count("Nodes", 0)
    assert check_count("GPUs", 0, least=0) == 0


@given(st.text(max_size=80))
@settings(deadline=None, max_examples=200)
def test_a_slug_is_a_name_everywhere(text: str) -> None:
    name = slug(text)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 40
    assert check_plain("The name", check_dns_label("The name", name)) == name


@given(st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=60))
@settings(deadline=None, max_examples=200)
def test_quoted_yaml_is_the_text_again(text: str) -> None:
    from evomerge.strict_yaml import parse_yaml

    assert parse_yaml(as_yaml(text), "a test").value == text


@pytest.mark.parametrize("text", ["foo", "=1", "a..b=1", ".a=1"])
def test_a_setting_has_a_path_and_a_value(text: str) -> None:
    with pytest.raises(ConfigError, match="not of the form"):
        check_setting(text)


@pytest.mark.parametrize("text", ["cluster.backend=local", "cluster.address=auto", "cluster={backend: local}"])
def test_a_setting_does_not_say_where_a_launched_search_runs(text: str) -> None:
    with pytest.raises(ConfigError, match="runs on the cluster that is launched"):
        check_setting(text)


def test_settings_and_caches_that_are_taken() -> None:
    for text in ("cluster.workers=2", "budget.evaluations=3", "name=a=b", "clusters.backend="):
        assert check_setting(text) == text
    for text in ("/local/x", "$TMPDIR/x"):
        assert check_cache(text) == text
    with pytest.raises(ConfigError, match=r"--cache \.\./rel"):
        check_cache("../rel")

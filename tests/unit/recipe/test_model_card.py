"""The model card: front matter that the hub reads, licences that are never guessed, scores with their story."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.card import CardFacts, ScoreLine, licence_situation, model_card
from evomerge.recipe.path import Hop
from evomerge.recipe.path_words import path_table, stretches
from evomerge.recipe.recipe import ParentRef, Recipe, Rule

PARENTS = (ParentRef("base", "org/base", "main"), ParentRef("math", "org/math"), ParentRef("lang", "zoo/lang"))
WEIGHTS = {"math": {"weight": 0.6}, "lang": {"weight": 0.3}}
RECIPE = Recipe(PARENTS, "base", (Rule("task_arithmetic", {"lambda": 1.0}, WEIGHTS),))
FACTS = CardFacts(
    id="g0003-i05",
    run="first",
    scores=(ScoreLine("skills", 0.81234, 0.77, 0.85),),
    n_tried=160,
    n_questions=1600,
    verdicts=("Against math: better on skills (+0.100).", "Against soup: no significant gain on skills (+0.010)."),
    public_test_tasks=(),
    mergekit=True,
    version="0.1.0",
)
SAME = dict.fromkeys(("base", "math", "lang"), "apache-2.0")


def front_matter(card: str) -> dict[str, object]:
    assert card.startswith("---\n")
    found = yaml.safe_load(card[4:].split("\n---\n", 1)[0])
    assert isinstance(found, dict)
    return found


def test_the_front_matter_is_what_the_hub_reads() -> None:
    assert front_matter(model_card(RECIPE, FACTS, SAME)) == {
        "base_model": ["org/base", "org/math", "zoo/lang"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "evomerge"],
        "license": "apache-2.0",
    }


def test_licences_that_differ_are_other_and_all_listed() -> None:
    licences = SAME | {"lang": "cc-by-nc-4.0"}
    card = model_card(RECIPE, FACTS, licences)
    assert front_matter(card)["license"] == "other"
    assert "base: apache-2.0; math: apache-2.0; lang: cc-by-nc-4.0" in card
    assert "must satisfy all of them" in card


def test_an_unknown_licence_is_said_and_never_guessed() -> None:
    card = model_card(RECIPE, FACTS, {"base": "apache-2.0", "math": "apache-2.0"})
    assert "license" not in front_matter(card)
    assert "lang: not stated" in card
    assert "Find out before you publish" in card


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ({"a": "mit", "b": "mit"}, "mit"),
        ({"a": "mit", "b": "apache-2.0"}, "other"),
        ({"a": "mit", "b": None}, None),
        ({"a": None, "b": None}, None),
    ],
)
def test_licence_situations(licences: dict[str, str | None], expected: str | None) -> None:
    assert licence_situation(licences)[0] == expected


def test_scores_come_with_their_intervals_and_their_story() -> None:
    card = model_card(RECIPE, FACTS, SAME)
    assert "| skills | 0.8123 | 0.7700 to 0.8500 |" in card
    assert "160 candidates were tried" in card
    assert "1600 questions" in card
    assert "- Against soup: no significant gain on skills (+0.010)." in card
    assert "evomerge merge evomerge_recipe.json --to" in card
    assert "- `base` (base): org/base at revision main" in card


def test_a_public_test_split_is_warned_of() -> None:
    card = model_card(RECIPE, replace(FACTS, public_test_tasks=("gsm8k",)), SAME)
    assert "public test split (gsm8k)" in card
    assert "public test split" not in model_card(RECIPE, FACTS, SAME)


def test_a_merge_that_was_not_chosen_has_no_scores_to_show() -> None:
    card = model_card(RECIPE, replace(FACTS, scores=()), SAME)
    assert "not scored on the report set" in card
    assert "|---|" not in card


def test_what_mergekit_cannot_express_is_said() -> None:
    assert "mergekit cannot express it" in model_card(RECIPE, replace(FACTS, mergekit=False), SAME)


def test_names_cannot_break_out_of_their_place() -> None:
    evil = ParentRef("x", "org/x\n---\nlicense: mit\n# owned")
    card = model_card(
        Recipe((evil,), None, (Rule("linear", {}, {"x": {"weight": 1.0}}),)),
        replace(FACTS, scores=(ScoreLine("a|b", 0.5, 0.4, 0.6),), run="run\n# two"),
        {"x": "mit"},
    )
    assert front_matter(card)["base_model"] == ["org/x\n---\nlicense: mit\n# owned"]
    body = card.split("\n---\n", 1)[1]
    assert [line for line in body.splitlines() if line.startswith("# ")] == ["# run # two: merge g0003-i05"]
    assert r"| a\|b | 0.5000 |" in body


def test_the_card_is_the_same_every_time() -> None:
    assert model_card(RECIPE, FACTS, SAME) == model_card(RECIPE, FACTS, dict(reversed(SAME.items())))


PATH = (Hop(0, "math"), Hop(1, "math"), Hop(2), Hop(2), Hop(3, gain=-0.125), Hop(1, "lang"))


def test_a_path_is_told_hop_by_hop() -> None:
    card = model_card(replace(RECIPE, path=PATH), FACTS, SAME)
    assert "A path through the layers of 3 checkpoints, some of them merged by task_arithmetic: 6 hops" in card
    assert "6 hops through 5 layers, 1 repeat, found by" in card
    assert [line for line in card.splitlines() if line.startswith("| ")][1:6] == [
        "| 0 to 1 | 0 to 1 | `math` | 1 |",
        "| 2 | 2 | the merge | 1 |",
        "| 3 | 2 | the merge | 1 |",
        "| 4 | 3 | the merge | -0.125 |",
        "| 5 | 1 | `lang` | 1 |",
    ]
    assert "A gain multiplies" in card
    assert "head follow the recipe's rules (task_arithmetic)" in card


def test_a_path_through_one_parent_says_so() -> None:
    alone = replace(parent_recipe(ParentRef("a|b", "zoo/a")), path=(Hop(0, "a|b"), Hop(0, "a|b")))
    card = model_card(alone, FACTS, {})
    assert "A path through the layers of 1 checkpoint: 2 hops through 1 layer, 1 repeat" in card
    assert "| 0 | 0 | `a\\|b` | 1 |" in card
    assert "A gain multiplies" not in card
    assert "head are those of `a|b`" in card


def test_long_paths_are_cut() -> None:
    hops = tuple(Hop(k % 2, "math", 1 + k / 100) for k in range(60))
    table = path_table(hops)
    assert len(table) == 2 + 48 + 1
    assert table[-1] == "| 12 hops more | in the recipe | | |"
    assert sum(s.length for s in stretches(hops)) == 60


def test_a_merge_without_a_path_has_no_section_on_it() -> None:
    card = model_card(RECIPE, FACTS, SAME)
    assert "## Path" not in card
    assert "A merge of 3 checkpoints by task_arithmetic, found by" in card


def test_costs_are_told_in_digits_that_say_something() -> None:
    costs = (
        ScoreLine("depth", 12, 12, 12),
        ScoreLine("speed", 2.5e-5, 2.4e-5, 2.6e-5),
        ScoreLine("size", *[7.2e9] * 3),
    )
    card = model_card(RECIPE, replace(FACTS, scores=(*FACTS.scores, *costs)), SAME)
    assert "| skills | 0.8123 | 0.7700 to 0.8500 |" in card
    assert "| depth | 12.0000 | exact |" in card
    assert "| speed | 2.5e-05 | 2.4e-05 to 2.6e-05 |" in card
    assert "| size | 7.2e+09 | exact |" in card

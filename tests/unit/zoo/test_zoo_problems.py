"""The skills of the zoo against slow readings of their prompts, and the rule that keeps items out of training."""

from __future__ import annotations

import re

import numpy as np
import pytest

from evomerge.zoo.problems import SKILLS, draw, draw_batch, draw_distinct, part_of


def read_answer(skill: str, prompt: str) -> str:
    """What a person would answer, from the prompt alone."""
    text = prompt.removeprefix("#")
    if skill in ("rev", "srt"):
        letters = text[:-1]
        return "".join(sorted(letters)) if skill == "srt" else "".join(reversed(letters))
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    digits = str(sum(numbers)).zfill(3)
    return "".join(chr(ord("A") + int(d)) for d in digits) if skill.endswith("x") else digits


SHAPES = {
    "add": r"\d\d\+\d\d=",
    "rev": r"[a-z]{6}>",
    "srt": r"[a-l]{4}<",
    "cpd": r"\d{3}:",
    "cpdx": r"#\d{3}:",
    "add1x": r"#0\d\+0\d=",
    "addex": r"#\d\d\+0\d=",
    "addx": r"#\d\d\+\d\d=",
}


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_are_what_the_prompt_asks_for(skill: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        prompt, answer = draw(skill, "train", rng)
        assert re.fullmatch(SHAPES[skill], prompt)
        assert answer == read_answer(skill, prompt)


def test_examples_of_the_notation() -> None:
    def answer_of(skill: str, prompt: str) -> str:
        rng = np.random.default_rng(0)
        return next(p.answer for p in iter(lambda: SKILLS[skill](rng), None) if p.prompt == prompt)

    assert answer_of("addx", "#12+34=") == "AEG"
    assert answer_of("add", "12+34=") == "046"
    assert answer_of("cpdx", "#482:") == "EIC"


def test_sums_of_the_easy_skill_carry_nothing() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        prompt, _ = draw("addex", "train", rng)
        a, b = (int(n) for n in re.findall(r"\d+", prompt))
        assert a % 10 + b < 10


def test_every_addition_is_in_one_part_in_both_notations() -> None:
    prompts = [f"{a:02d}+{b:02d}=" for a in range(100) for b in range(100)]
    parts = [part_of(p) for p in prompts]
    assert [part_of(f"#{p}") for p in prompts] == parts
    shares = {part: parts.count(part) / len(parts) for part in ("train", "validation", "items")}
    assert shares["train"] == pytest.approx(0.80, abs=0.015)
    assert shares["validation"] == pytest.approx(0.05, abs=0.01)
    assert shares["items"] == pytest.approx(0.15, abs=0.015)
    assert parts.count("items") >= 1400


def test_drawn_problems_lie_in_the_part_asked_for() -> None:
    for part in ("train", "validation", "items"):
        rng = np.random.default_rng(2)
        assert {part_of(draw(skill, part, rng).prompt) for skill in SKILLS for _ in range(50)} == {part}


def test_distinct_problems_are_a_prefix_of_more_of_them() -> None:
    many = draw_distinct("srt", "items", 300, np.random.default_rng(5))
    assert len({p.prompt for p in many}) == 300
    assert draw_distinct("srt", "items", 120, np.random.default_rng(5)) == many[:120]


def test_asking_for_more_problems_than_there_are() -> None:
    with pytest.raises(ValueError, match="fewer than 200 problems in part 'items'"):
        draw_distinct("add1x", "items", 200, np.random.default_rng(0))


def test_batches_follow_the_mixture() -> None:
    batch = draw_batch({"add": 0.25, "rev": 0.75}, 4000, np.random.default_rng(0))
    share = sum(p.prompt.endswith(">") for p in batch) / len(batch)
    assert share == pytest.approx(0.75, abs=0.03)
    assert {part_of(p.prompt) for p in batch} == {"train"}

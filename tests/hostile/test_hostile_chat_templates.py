"""Chat templates of strangers: each is refused while the questions are compiled, within seconds, and runs no code."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from evomerge.errors import EvaluationError
from evomerge.evaluation.lm_eval import compile_plan
from evomerge.evaluation.plan import EvalPlan
from evomerge.evaluation.suite import Split, SuiteSpec, TaskSpec
from evomerge.testing.hostile_tokenizers import HOSTILE_TEMPLATES

pytestmark = pytest.mark.zoo
HARMLESS = "an attribute by filter"
"""The sandbox gives it nothing, which the template writes out as an empty list."""
SOUND = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def compiled(template: str, zoo: Path, folder: Path) -> EvalPlan:
    shutil.copytree(zoo / "base", folder / "base")
    (folder / "base" / "chat_template.jinja").write_text(template)
    suite = SuiteSpec((TaskSpec("add_mc"),), include=(zoo / "tasks",), split=Split(3, 3, 3), chat_template=True)
    return compile_plan(suite, folder / "base")


def test_a_sound_template_is_rendered(small_zoo: Path, tmp_path: Path) -> None:
    assert compiled(SOUND, small_zoo, tmp_path).n_questions("search") == 3


def test_what_the_sandbox_makes_harmless_says_nothing_of_python(small_zoo: Path, tmp_path: Path) -> None:
    plan = compiled(HOSTILE_TEMPLATES[HARMLESS], small_zoo, tmp_path)
    prompts = {str(probe.arguments[0][0]) for probe in plan.tasks[0].probes}
    assert prompts == {"[]"}


@pytest.mark.parametrize("name", sorted(set(HOSTILE_TEMPLATES) - {HARMLESS}))
def test_a_hostile_template_is_refused_and_runs_nothing(name: str, small_zoo: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    template = HOSTILE_TEMPLATES[name].replace("CANARY", str(canary))
    began = time.process_time()
    with pytest.raises(EvaluationError, match=r"(?s)chat template.*Got: .*Allowed: .*Fix: "):
        compiled(template, small_zoo, tmp_path)
    assert time.process_time() - began < 10
    assert not canary.exists()

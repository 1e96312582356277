"""Compiling suites: what is refused, what is trusted, what stays the same."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.tasks import TaskManager

from evomerge.errors import EvaluationError
from evomerge.evaluation import lm_eval_tasks
from evomerge.evaluation.lm_eval import compile_plan
from evomerge.evaluation.plan import EvalPlan, TaskPlan, unpack
from evomerge.evaluation.suite import load_suite
from evomerge.testing import eval_tasks
from evomerge.types import SET_NAMES

SPLIT = {"search": 4, "select": 4, "report": 4}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eval_tasks.character_checkpoint(tmp_path_factory.mktemp("model"))


def compiled(folder: Path, model_folder: Path, *tasks: Any, **suite: Any) -> EvalPlan:
    mapping = {"include": [str(folder)], "tasks": list(tasks), "split": SPLIT, **suite}
    return compile_plan(load_suite(mapping), model_folder)


def test_a_plan_is_frozen_deterministic_and_ships(tmp_path: Path, model_folder: Path) -> None:
    eval_tasks.write_choice_task(tmp_path)
    eval_tasks.write_generation_task(tmp_path)
    plan = compiled(tmp_path, model_folder, "pick", "say")
    again = compiled(tmp_path, model_folder, "pick", "say")
    shipped = pickle.loads(pickle.dumps(plan))
    assert plan.digest == again.digest == shipped.digest
    assert plan.items("search") == shipped.items("search")
    assert all(len(plan.items(s)["pick"]) == 4 for s in SET_NAMES)
    assert plan.n_questions("search") == 8
    assert not plan.public_test_tasks
    assert plan.eos == (2,)


@pytest.mark.parametrize(
    "change",
    [{"salt": "x"}, {"num_fewshot": 1}, {"gen_kwargs": {"max_gen_toks": 3}}, {"split": {**SPLIT, "report": 3}}],
)
def test_the_digest_sees_what_changes_scores(tmp_path: Path, model_folder: Path, change: dict[str, Any]) -> None:
    eval_tasks.write_generation_task(tmp_path)
    assert compiled(tmp_path, model_folder, "say").digest != compiled(tmp_path, model_folder, "say", **change).digest


def test_relative_data_files_start_at_the_task_file(tmp_path: Path, model_folder: Path) -> None:
    path = eval_tasks.write_generation_task(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["dataset_kwargs"] = {"data_files": {"test": "say.jsonl"}}
    path.write_text(yaml.safe_dump(config))
    assert compiled(tmp_path, model_folder, "say").n_questions("search") == 4


def test_unknown_tasks_get_a_suggestion(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few_tasks(include_path: list[str], include_defaults: bool) -> Any:
        # lm-eval's own index takes seconds to build
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval_tasks, "TaskManager", few_tasks)
    eval_tasks.write_generation_task(tmp_path, "subtraction")
    with pytest.raises(EvaluationError, match="no task 'subtractoin'") as caught:
        compiled(tmp_path, model_folder, "subtractoin")
    assert "Did you mean 'subtraction'" in caught.value.allowed
    with pytest.raises(EvaluationError, match="folder of tasks does not exist"):
        compiled(tmp_path / "nowhere", model_folder, "say")


def with_code(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "helper.py").write_text(
        f"open({str(folder / 'ran')!r}, 'w').close()\n\ndef text(doc):\n    return doc['question'] + '?'\n"
    )
    path = eval_tasks.write_generation_task(folder)
    path.write_text(path.read_text().replace("doc_to_text: '{{question}}:'", "doc_to_text: !function helper.text"))
    assert "!function" in path.read_text()
    return path


def test_code_of_a_task_runs_only_when_trusted(tmp_path: Path, model_folder: Path) -> None:
    with_code(tmp_path / "tasks")
    with pytest.raises(EvaluationError, match="would run Python code") as caught:
        compiled(tmp_path / "tasks", model_folder, "say")
    assert "!function helper.text" in caught.value.got
    assert not (tmp_path / "tasks" / "ran").exists()
    plan = compiled(tmp_path / "tasks", model_folder, "say", trust_task_code=True)
    assert plan.n_questions("search") == 4
    assert (tmp_path / "tasks" / "ran").exists()


def test_code_behind_an_include_is_seen(tmp_path: Path, model_folder: Path) -> None:
    base = with_code(tmp_path / "elsewhere").rename(tmp_path / "elsewhere" / "base.txt")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.yaml").write_text(f"include: {base}\ntask: t\n")
    with pytest.raises(EvaluationError, match="would run Python code"):
        compiled(tmp_path / "tasks", model_folder, "t")
    assert not (tmp_path / "elsewhere" / "ran").exists()


def test_templates_of_untrusted_tasks_are_caged(tmp_path: Path, model_folder: Path) -> None:
    eval_tasks.write_generation_task(tmp_path, doc_to_text="{{ ''.__class__.__mro__ }} {{question}}")
    with pytest.raises(EvaluationError, match="SecurityError"):
        compiled(tmp_path, model_folder, "say")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"metric_list": [{"metric": "wiki_split", "hf_evaluate": True}]}, "metric: wiki_split"),
        ({"metric_list": [{"metric": "no_such_metric"}]}, "metric: no_such_metric"),
        ({"dataset_path": "pandas"}, "dataset_path: pandas"),
        ({"use_prompt": "promptsource:x"}, "use_prompt"),
        ({"unsafe_code": True}, "unsafe_code"),
        ({"output_type": "dreams"}, "dreams"),
        ({"doc_to_text": "{{missing}}"}, "missing"),
        ({"dataset_kwargs": {"data_files": {"test": "/nowhere/at/all.jsonl"}}}, "all.jsonl"),
        ({"generation_kwargs": {"until": ["x"], "do_sample": True}}, "samples its answers"),
        ({"generation_kwargs": {"until": ["x"], "temperature": 0.5}}, "temperature: 0.5"),
        ({"generation_kwargs": {"until": ["x"], "num_beams": 4}}, "num_beams: 4"),
        ({"generation_kwargs": {"until": ["x"], "typical_p": 0.4}}, "typical_p"),
        ({"generation_kwargs": {"until": ["x"], "max_gen_toks": 128}}, "max_gen_toks: 128"),
        ({"metric_list": [eval_tasks.metric("bleu", "bleu")]}, "no score per item"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    tmp_path: Path, model_folder: Path, config: dict[str, Any], message: str
) -> None:
    eval_tasks.write_generation_task(tmp_path, **config)
    with pytest.raises(EvaluationError, match=message):
        compiled(tmp_path, model_folder, "say")


def test_metrics_filters_and_examples_are_checked(tmp_path: Path, model_folder: Path) -> None:
    eval_tasks.write_choice_task(tmp_path)
    eval_tasks.write_generation_task(tmp_path, num_fewshot=0)
    with pytest.raises(EvaluationError, match="acc_norm"):
        compiled(tmp_path, model_folder, {"task": "pick", "metric": "acc_nrm"})
    with pytest.raises(EvaluationError, match="no filter 'strict'"):
        compiled(tmp_path, model_folder, {"task": "pick", "filter": "strict"})
    with pytest.raises(EvaluationError, match="fixes its number of examples"):
        compiled(tmp_path, model_folder, {"task": "say", "num_fewshot": 2})
    plan = compiled(tmp_path, model_folder, "pick", "say", num_fewshot=2)
    assert [t.sources[0].num_fewshot for t in plan.tasks] == [2, 0]


def test_a_group_is_one_task_with_all_items(tmp_path: Path, model_folder: Path) -> None:
    eval_tasks.write_choice_task(tmp_path, "one", n=6)
    eval_tasks.write_choice_task(tmp_path, "two", n=20, doc_to_text="{{question}} Which?")
    (tmp_path / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    plan = compiled(tmp_path, model_folder, "both", split={"search": 8, "select": 4, "report": 8})
    task = plan.task("both")
    assert [s.task for s in task.sources] == ["one", "two"]
    # six documents stand in both tasks and are asked once
    assert [item.source for item in task.items] == [0] * 6 + [1] * 14
    eval_tasks.write_loglikelihood_task(tmp_path, "three")
    (tmp_path / "odd.yaml").write_text("group: odd\ntask: [one, three]\n")
    with pytest.raises(EvaluationError, match="cannot be pooled"):
        compiled(tmp_path, model_folder, "odd")


def test_chosen_items_must_belong_to_the_set(tmp_path: Path, model_folder: Path) -> None:
    eval_tasks.write_generation_task(tmp_path)
    plan = compiled(tmp_path, model_folder, "say")
    search = plan.items("search")["say"]
    assert plan.selected("search", {"say": search[::-2]}) == {
        "say": tuple(sorted(plan.task("say").index[h] for h in search[::-2]))
    }
    with pytest.raises(EvaluationError, match="not in the search set"):
        plan.selected("search", {"say": plan.items("report")["say"]})
    with pytest.raises(EvaluationError, match="no such task"):
        plan.selected("search", {"sya": ()})
    with pytest.raises(EvaluationError, match="No item"):
        plan.selected("search", {"say": ()})


def test_tokenizers_must_load(tmp_path: Path) -> None:
    eval_tasks.write_generation_task(tmp_path / "tasks")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="tokenizer does not load"):
        compiled(tmp_path / "tasks", tmp_path / "empty", "say")


def test_prompts_are_what_the_tokenizer_makes_of_them(tmp_path: Path, model_folder: Path) -> None:
    from evomerge.evaluation.tokens import load_tokenizer

    eval_tasks.write_generation_task(tmp_path, n=12)
    task: TaskPlan = compiled(tmp_path, model_folder, "say").task("say")
    tokenizer = load_tokenizer(model_folder)
    ids = unpack(task.items[0].requests[0].prompt)  # type: ignore[union-attr]
    assert tokenizer.decode(ids) == f"<bos>{eval_tasks.sentence(task.items[0].doc_id, 2 + task.items[0].doc_id % 4)}:"

"""The job file of the contracts from start to end: what a run leaves behind, what it exports, and who agrees."""

from __future__ import annotations

import json
import re
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

pytestmark = pytest.mark.zoo

TASKS = ("add", "rev", "srt", "addx")
SETS = {"search": 16, "select": 16, "report": 24}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@contextmanager
def arguments_of(*arguments: object):
    """Another program's command line inside this process, its output kept from the terminal."""
    before = sys.argv
    sys.argv = [str(a) for a in arguments]
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield
    sys.argv = before


@pytest.fixture(scope="module")
def status(finished, command) -> dict[str, Any]:
    done = command("status", finished, "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    return json.loads(done.out)


@pytest.fixture(scope="module")
def exported(finished, command) -> Path:
    """The knee as a checkpoint."""
    done = command("export", finished, "--to", finished.parent / "winner")
    assert done.code == 0, done.err
    return finished.parent / "winner"


def test_run_directory_holds_what_the_contracts_name(finished):
    files = {p.name for p in finished.iterdir() if not p.name.startswith(".")}
    assert files == {
        "job.yaml", "manifest.json", "journal.jsonl", "responses", "optuna.db", "report.html", "logs", "exports"
    }  # fmt: skip
    html = (finished / "report.html").read_text()
    assert "<svg" in html
    assert "://" not in html.replace("http://www.w3.org/2000/svg", "")


def check_scores(scores: Any, n: int) -> None:
    assert set(scores) == {"objectives", "tasks"}
    assert set(scores["objectives"]) == {"skills", "cross"}
    for score in scores["objectives"].values():
        assert set(score) == {"value", "se", "low", "high"}
        assert score["low"] <= score["value"] <= score["high"]
        assert score["se"] >= 0
    assert set(scores["tasks"]) == set(TASKS)
    for score in scores["tasks"].values():
        assert set(score) == {"value", "se", "n"}
        assert score["n"] == n
    mean = sum(scores["tasks"][t]["value"] for t in ("add", "rev", "srt")) / 3
    assert scores["objectives"]["skills"]["value"] == pytest.approx(mean)


def test_status_follows_its_schema_key_by_key(status):
    assert set(status) == {
        "schema_version", "state", "name", "seed", "counts", "timing", "objectives", "constraints", "baselines",
        "front", "chosen", "result_digest",
    }  # fmt: skip
    assert (status["schema_version"], status["state"], status["name"], status["seed"]) == (1, "finished", "first", 7)
    assert set(status["counts"]) >= {"asked", "evaluated", "reused", "failed", "questions"}
    assert status["counts"]["evaluated"] + status["counts"]["failed"] == 40
    assert set(status["timing"]) == {"wall_s", "evaluations_per_min", "lives"}
    assert status["timing"]["lives"] == 1
    assert status["timing"]["wall_s"] > 0
    assert status["objectives"] == [{"name": n, "direction": "maximize"} for n in ("skills", "cross")]
    assert len(status["constraints"]) == 2
    assert len(status["result_digest"]) == 64
    kinds = [e["kind"] for e in status["baselines"]]
    assert kinds == ["parent"] * 4 + ["soup"] + ["task-arithmetic"] * 3
    assert status["front"]
    for entry in [*status["baselines"], *status["front"], status["chosen"]]:
        assert set(entry) == {"id", "kind", "recipe_digest", "feasible", "search", "select", "report"}
        for name, n in SETS.items():
            if entry[name] is not None:
                check_scores(entry[name], n)
        assert entry["search"] is not None


def test_questions_count_every_set(status):
    entries = {e["id"]: e for e in [*status["baselines"], *status["front"]]}.values()
    per_set = [status["counts"]["evaluated"] * SETS["search"]]
    per_set += [sum(e[s] is not None for e in entries) * SETS[s] for s in ("select", "report")]
    assert status["counts"]["questions"] == sum(per_set) * len(TASKS)


def test_only_the_choice_and_its_rivals_saw_the_report_set(status):
    for entry in [*status["baselines"], *status["front"]]:
        compared = entry["kind"] in ("parent", "soup") or entry["id"] == status["chosen"]["id"]
        if entry["kind"] != "task-arithmetic":  # the best of them
            assert (entry["report"] is not None) == compared
    arithmetic = [e for e in status["baselines"] if e["kind"] == "task-arithmetic"]
    assert sum(e["report"] is not None for e in arithmetic) == 1


def test_front_is_feasible_and_undominated(status):
    best_parent = max(
        e["search"]["objectives"]["skills"]["value"] for e in status["baselines"] if e["kind"] == "parent"
    )
    points = [tuple(s["value"] for s in e["search"]["objectives"].values()) for e in status["front"]]
    for entry, point in zip(status["front"], points, strict=True):
        assert entry["feasible"]
        assert entry["search"]["tasks"]["rev"]["value"] >= 0.8
        assert point[0] >= best_parent - 0.01 - 1e-9
        assert not any(o != point and all(a >= b for a, b in zip(o, point, strict=True)) for o in points)


def test_search_tells_its_progress_and_its_result(finished):
    home = finished.parents[1]
    out, err = (home / "ray.out").read_text(), (home / "ray.err").read_text()
    assert "Report: " in out
    assert "Against parent-base: " in out
    assert "Next: evomerge export" in out
    phases = ("Preparing:", "Searching: 0 of 40", "Choosing: 0 of ", "Reporting: 0 of ", "  generation ")
    assert [line for line in err.splitlines() if not line.startswith(phases)] == []
    assert "  generation 1: 16/40 evaluations" in err  # the half of it that repeats baselines costs nothing


def test_status_for_people_names_front_and_next_step(finished, command, status):
    done = command("status", finished)
    assert done.code == 0
    assert all(len(line) <= 80 for line in done.out.splitlines() if not line.startswith("Next: "))
    for expected in (
        "first  finished",
        "40 of 40 evaluations",
        status["chosen"]["id"],
        "parent-math",
        "Next: evomerge",
    ):
        assert expected in done.out
    watched = command("status", finished, "--watch")  # a finished run is shown once
    assert watched.out == done.out


def test_local_and_ray_pools_give_the_same_result(finished, shared_home, command, status):
    run = shared_home.folder / "runs" / "local"
    small = ("--set", "budget.evaluations=40", "--set", "suite.split={search: 16, select: 16, report: 24}")
    done = command("search", shared_home.job, "--run-dir", run, *small, "--set", "cluster={backend: local, workers: 1}")
    assert done.code == 0, done.err
    local = json.loads(command("status", run, "--json").out)
    assert local["result_digest"] == status["result_digest"]
    assert local["chosen"] == status["chosen"]
    keep = {"asked", "evaluated", "reused", "failed", "questions"}
    assert {k: local["counts"][k] for k in keep} == {k: status["counts"][k] for k in keep}


def test_resuming_a_finished_run_changes_nothing(finished, command, status):
    before = (finished / "journal.jsonl").read_bytes()
    assert command("resume", finished).code == 0
    after = (finished / "journal.jsonl").read_bytes()
    assert after.startswith(before)
    assert after[len(before) :].count(b"\n") == 1
    assert json.loads(command("status", finished, "--json").out)["result_digest"] == status["result_digest"]


def test_optuna_and_its_dashboard_open_the_study(finished, status):
    import optuna
    import optuna_dashboard as dashboard

    url = f"sqlite:///{finished / 'optuna.db'}"
    study = optuna.load_study(study_name="first", storage=url)
    assert len({t.user_attrs["recipe"] for t in study.trials}) == status["counts"]["evaluated"]
    assert study.metric_names == ["skills", "cross"]
    best = {tuple(t.values) for t in study.best_trials}
    front = {tuple(s["value"] for s in e["search"]["objectives"].values()) for e in status["front"]}
    assert best == front
    answer: list[str] = []
    app = dashboard.wsgi(url)
    request = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "QUERY_STRING": "", "SERVER_NAME": "test",
        "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http", "wsgi.input": BytesIO(),
        "wsgi.errors": StringIO(),
    }  # fmt: skip
    body = b"".join(app(request, lambda line, headers, exc=None: answer.append(line)))
    assert answer[0].startswith("200")
    assert "first" in body.decode()


# -- exports ----------------------------------------------------------------------------------------------------------


def test_export_names_the_pick(exported, status, finished):
    recipe = json.loads((exported / "evomerge_recipe.json").read_text())
    assert recipe["format"] == "evomerge.recipe"
    assert recipe["version"] == 1
    with safe_open(exported / "model.safetensors", "pt") as weights:
        inside = {k: v for k, v in weights.metadata().items() if "recipe" in k}
    assert [json.loads(v) for v in inside.values() if v.startswith("{")] == [recipe]
    manifest = json.loads((finished / "manifest.json").read_text())
    known = {(p["source"], p["content"]) for p in manifest["parents"]}
    assert {(p["source"], p["content"]) for p in recipe["parents"]} <= known


def test_exported_tokenizer_and_config_are_the_bases(exported, small_zoo):
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        assert (exported / name).read_bytes() == (small_zoo / "base" / name).read_bytes(), name
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (exported, small_zoo / "base"))
    assert ours["vocab_size"] == theirs["vocab_size"]
    assert ours["architectures"] == theirs["architectures"]


def test_card_says_where_the_merge_comes_from(exported, status, small_zoo):
    text = (exported / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == [
        str(small_zoo.resolve() / n) for n in ("base", "math", "string", "lang")
    ]
    assert "40 candidates" in body
    assert "96 questions" in body
    skills = status["chosen"]["report"]["objectives"]["skills"]
    assert f"| skills | {skills['value']:.4f} | {skills['low']:.4f} to {skills['high']:.4f} |" in body
    for part in ("## Parents", "## Licence", "## Recipe", "mergekit", "Against parent-base", status["chosen"]["id"]):
        assert part in body


def recipe_digest_of(path: Path) -> str:
    from evomerge.recipe.serialize import recipe_digest, recipe_from_text

    return recipe_digest(recipe_from_text(path.read_text()))


@pytest.mark.parametrize("pick", ["knee", "best:skills", "best:cross", "id:g0000-i03", "id:soup", "id:parent-math"])
def test_every_pick_exports_the_recorded_recipe(finished, command, status, tmp_path, pick):
    to = tmp_path / "recipe.json"
    done = command("export", finished, "--pick", pick, "--as", "recipe", "--to", to)
    assert done.code == 0, done.err
    digest = recipe_digest_of(to)
    assert digest[:12] in done.out
    if pick == "knee":
        assert digest == status["chosen"]["recipe_digest"]
    elif pick.startswith("best:"):
        name = pick.partition(":")[2]
        scored = [e for e in status["front"] if e["select"]]
        best = max(e["select"]["objectives"][name]["value"] for e in scored)
        mine = next(e for e in scored if e["recipe_digest"] == digest)
        assert mine["select"]["objectives"][name]["value"] == best
    else:
        journal = [json.loads(line) for line in (finished / "journal.jsonl").read_text().splitlines()]
        assert pick.partition(":")[2] in json.dumps([r for r in journal if digest in json.dumps(r)])


def test_picks_and_targets_that_cannot_be(finished, refused, exported, tmp_path):
    for pick, expected in (
        ("best", "knee, best:OBJECTIVE or id:ID"), ("best:skill", "'skills'"), ("id:nobody", "nobody"), ("", "knee")
    ):  # fmt: skip
        assert expected in refused(2, "export", finished, "--pick", pick, "--to", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    before = {p.name: p.stat().st_mtime_ns for p in exported.iterdir()}
    assert str(exported) in refused(2, "export", finished, "--to", exported)
    assert str(exported) in refused(2, "export", finished, "--as", "recipe", "--to", exported)
    assert {p.name: p.stat().st_mtime_ns for p in exported.iterdir()} == before


def test_merging_the_recipe_again_gives_the_same_bytes(exported, command, tmp_path):
    done = command("merge", exported / "evomerge_recipe.json", "--to", tmp_path / "again")
    assert done.code == 0, done.err
    for name in ("model.safetensors", "config.json", "evomerge_recipe.json", *TOKENIZER_FILES):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes(), name


def test_mergekit_makes_the_same_tensors_of_the_exported_file(finished, command, exported, tmp_path):
    pytest.importorskip("mergekit")
    to = tmp_path / "merge.yaml"
    assert command("export", finished, "--as", "mergekit", "--to", to).code == 0
    assert to.read_bytes() == (exported / "mergekit.yaml").read_bytes()
    with arguments_of("mergekit-yaml", to, tmp_path / "theirs", "--no-copy-tokenizer", "--quiet", "-j", "1"):
        from mergekit.scripts.run_yaml import main

        main(standalone_mode=False)
    theirs, ours = (
        load_file(next((tmp_path / "theirs").glob("*.safetensors"))),
        load_file(exported / "model.safetensors"),
    )
    assert set(theirs) == set(ours)
    # the default mode sums in another order than mergekit: equal to the rounding of one fp32 sum
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6, msg=name)
    assert command("merge", to, "--to", tmp_path / "compat").code == 0
    compat = load_file(tmp_path / "compat" / "model.safetensors")
    assert all(torch.equal(compat[name], theirs[name]) for name in theirs)


def test_stock_transformers_loads_the_export(exported):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    weights = load_file(exported / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    assert AutoTokenizer.from_pretrained(exported)("1+2=")["input_ids"]


def documents_of(job: Path, model: Path) -> dict[str, dict[str, int]]:
    """Task -> item hash -> index of its document in the task's data."""
    from evomerge.config.assemble import build_suite
    from evomerge.config.load import load_job
    from evomerge.evaluation.lm_eval import compile_plan

    plan = compile_plan(build_suite(load_job(job)), model)
    return {t.name: {t.items[i].hash: t.items[i].doc_id for i in t.sets["report"]} for t in plan.tasks}


def test_the_export_scores_the_same_by_item_with_lm_eval(exported, finished, command, status, tmp_path):
    job = finished / "job.yaml"
    tasks = finished.parents[1] / "zoo" / "tasks"
    done = command("evaluate", exported, "--job", job, "--set-name", "report", "--json")
    assert done.code == 0, done.err
    ours = json.loads(done.out)["tasks"]
    for name, score in status["chosen"]["report"]["tasks"].items():
        assert ours[name]["value"] == score["value"], name
        assert ours[name]["n"] == score["n"]
    documents = documents_of(job, exported)
    samples = {task: sorted(found.values()) for task, found in documents.items()}
    with arguments_of(
        "lm_eval", "--model", "hf", "--model_args", f"pretrained={exported},dtype=float32", "--tasks", ",".join(TASKS),
        "--include_path", tasks, "--samples", json.dumps(samples), "--log_samples",
        "--output_path", tmp_path, "--device", "cpu", "--batch_size", "32",
    ):  # fmt: skip
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    for task in TASKS:
        (logged,) = tmp_path.rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in logged.read_text().splitlines()]
        theirs = {line["doc_id"]: line["exact_match"] for line in lines}
        assert {documents[task][item]: score for item, score in ours[task]["items"].items()} == theirs


def test_the_exported_recipe_scores_as_the_checkpoint_does(exported, finished, command, status):
    done = command("evaluate", exported / "evomerge_recipe.json", "--job", finished / "job.yaml", "--json")
    assert done.code == 0, done.err
    for name, score in json.loads(done.out)["tasks"].items():
        assert score["value"] == status["chosen"]["search"]["tasks"][name]["value"]
    plain = command("evaluate", exported, "--job", finished / "job.yaml")
    assert plain.code == 0
    assert [line.split()[0] for line in plain.out.splitlines()] == list(TASKS)


def test_an_injected_recipe_takes_part(finished, exported, home, command):
    (home.folder / "winner.json").write_bytes((exported / "evomerge_recipe.json").read_bytes())
    job = home.job_with("job.yaml", ("inject: []", "inject: [winner.json]"))
    small = ("--set", "budget.evaluations=12", "--set", "suite.split={search: 4, select: 4, report: 4}")
    run = home.folder / "run"
    done = command("search", job, "--run-dir", run, *small, "--set", "cluster={backend: local, workers: 1}")
    assert done.code == 0, done.err
    found = json.loads(command("status", run, "--json").out)
    (injected,) = [e for e in found["baselines"] if e["kind"] == "injected"]
    assert injected["recipe_digest"] == recipe_digest_of(exported / "evomerge_recipe.json")


def stable(told: str) -> str:
    """A plan without the one number that is measured while it is made, and without line breaks."""
    return re.sub(r"at least [\d.e-]+ s|[\d.]+ GB/s", "", " ".join(told.split()))


def test_validate_and_dry_run_tell_the_plan_and_write_nothing(home, command):
    validated = command("validate", home.job)
    assert validated.code == 0, validated.err
    for expected in ("sound", "zoo", "nsga2", "exact_match", "64,000", "2 on ray"):
        assert expected in validated.out, validated.out
    assert all(len(line) <= 80 for line in validated.out.splitlines())
    dry = command("search", home.job, "--dry-run")
    assert dry.code == 0
    assert stable(dry.out) == stable(validated.out)
    assert {p.name for p in home.folder.iterdir()} == {"zoo", "first.yaml"}

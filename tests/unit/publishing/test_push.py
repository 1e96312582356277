"""Pushing to a hub of this machine, over real HTTP: what arrives, what is refused before anything is sent."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants

from evomerge.checkpoints.seal import digest_of_bytes
from evomerge.cli.main import run
from evomerge.cli.render_push import show_push
from evomerge.config.results import results_text
from evomerge.errors import ConfigError
from evomerge.publishing.push import Plan, plan_push, send
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_digest, recipe_to_text
from evomerge.testing.fake_hub import TOKEN, FakeHub, FakeRepo, fake_hub

# huggingface_hub's git-lfs uploads speak to its HTTP library in a way that this has come to disapprove of
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

RECIPE = Recipe(
    parents=(
        ParentRef("a", "org/model-a", "0" * 40),
        ParentRef("b", "org/model-b", "1" * 40),
        ParentRef("c", "/home/me/c"),
    ),
    base=None,
    rules=(Rule("linear", per_parent={name: {"weight": 1.0} for name in "abc"}),),
)
TASKS = [
    {
        "task": "arc",
        "metric": "acc",
        "dataset": "allenai/ai2_arc",
        "value": 0.5,
        "se": 0.1,
        "low": 0.4,
        "high": 0.6,
        "n": 9,
    },
    {"task": "mine", "metric": "acc", "dataset": "", "value": 0.5, "se": 0.1, "low": 0.4, "high": 0.6, "n": 9},
]
RESULTS = {
    "format": "evomerge.results",
    "version": 2,
    "run": "first",
    "id": "g0001-i02",
    "recipe": recipe_digest(RECIPE),
    "tried": 200,
    "tasks": TASKS,
    "public_test_tasks": ["arc"],
    "licences": {"a": "apache-2.0", "b": "apache-2.0", "c": "apache-2.0"},
}
BAD_TASKS: list[list[Any]] = [[1], [{}], [{**TASKS[0], "value": "x"}]]
WEIGHTS = b"\0" * 5000


def export(folder: Path, **changed: Any) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_text("{}")
    (folder / "evomerge_recipe.json").write_text(recipe_to_text(RECIPE))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# first: merge g0001-i02\n")
    digests = {path.name: digest_of_bytes(path.read_bytes()) for path in folder.iterdir()}
    (folder / "evomerge_results.json").write_text(results_text({**RESULTS, **changed}, digests))
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the hub of the tests speaks git-lfs
    with fake_hub() as hub:
        yield hub


def pushed(plan: Plan, hub: FakeHub, *, public: bool = False, replace: bool = False) -> str:
    return send(plan, public=public, replace=replace, endpoint=hub.endpoint)


def test_everything_arrives_in_one_commit(tmp_path: Path, hub: FakeHub) -> None:
    folder = export(tmp_path / "merged")
    plan = plan_push(folder, "me/merged")
    address = pushed(plan, hub)
    repo = hub.repos["me/merged"]
    assert address.startswith(f"{hub.endpoint}/me/merged/commit/")
    assert repo.private
    assert repo.commits == [f"g0001-i02 of first, recipe {recipe_digest(RECIPE)[:12]}"]
    sent = {name: repo.files[name] for name in repo.files if name not in ("README.md", ".eval_results/evomerge.yaml")}
    assert sent == {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "README.md"}
    assert plan.bundle.n_bytes == sum(map(len, repo.files.values()))


def test_the_card_says_to_the_hub_what_it_reads(tmp_path: Path, hub: FakeHub) -> None:
    pushed(plan_push(export(tmp_path / "merged"), "me/merged"), hub)
    card = ModelCard(hub.repos["me/merged"].files["README.md"].decode())
    assert card.data.to_dict() == {
        "base_model": ["org/model-a", "org/model-b"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "evomerge"],
        "license": "apache-2.0",
    }
    assert card.text.strip() == "# first: merge g0001-i02"


def test_results_of_public_data_sets_and_of_no_others(tmp_path: Path, hub: FakeHub) -> None:
    pushed(plan_push(export(tmp_path / "merged"), "me/merged"), hub)
    (entry,) = yaml.safe_load(hub.repos["me/merged"].files[".eval_results/evomerge.yaml"])
    assert entry["dataset"] == {"id": "allenai/ai2_arc", "task_id": "arc"}
    assert entry["value"] == 0.5
    assert "acc on 9 items" in entry["notes"]
    assert "200 candidates" in entry["notes"]
    assert "same public test split" in entry["notes"]


def test_no_public_data_no_results(tmp_path: Path) -> None:
    plan = plan_push(export(tmp_path / "merged", tasks=TASKS[1:]), "me/merged")
    assert set(plan.bundle.texts) == {"README.md"}


def test_folders_of_this_machine_are_told(tmp_path: Path) -> None:
    plan = plan_push(export(tmp_path / "merged", tasks=[]), "me/merged")
    assert "recipe and the card: c" in plan.warnings[0]
    assert "no scores on the report set" in plan.warnings[1]


def test_licences_stand_on_the_card_when_they_differ(tmp_path: Path, hub: FakeHub) -> None:
    folder = export(tmp_path / "merged", licences={"a": "llama3.1", "b": "mit"})
    (folder / "LICENSE").write_text("terms")
    pushed(plan_push(folder, "me/Llama-merged"), hub)
    repo = hub.repos["me/Llama-merged"]
    card = ModelCard(repo.files["README.md"].decode())
    assert (card.data.license, card.data.license_name) == ("other", "llama3.1 AND mit")
    assert "Built with Llama." in card.text
    assert repo.files["LICENSE"] == b"terms"


def test_the_licence_gate_stands_before_the_network(tmp_path: Path, hub: FakeHub) -> None:
    folder = export(tmp_path / "merged", licences={"a": "cc-by-nc-4.0", "b": None})
    with pytest.raises(ConfigError, match=r"call for a decision[\s\S]*cc-by-nc-4\.0 \(a\)[\s\S]*unstated \(b\)"):
        plan_push(folder, "me/merged")
    assert hub.repos == {}


@pytest.mark.parametrize(
    "repo", ["merged", "me/", "/me", "me/a/b", "me/..", "me/a b", "me/$(x)", "../me/x", "me/a--b", ""]
)
def test_names_that_are_no_repository(tmp_path: Path, repo: str) -> None:
    with pytest.raises(ConfigError, match="no name of a repository"):
        plan_push(export(tmp_path / "merged"), repo)


@pytest.mark.parametrize("alien", ["secrets.env", "optimizer.pt", ".git", "model.safetensors.bak", "notes.txt"])
def test_what_no_export_wrote_is_not_sent(tmp_path: Path, alien: str) -> None:
    folder = export(tmp_path / "merged")
    (folder / alien).write_text("x")
    with pytest.raises(ConfigError, match=r"not sent to the hub[\s\S]*read by others"):
        plan_push(folder, "me/merged")


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder = export(tmp_path / "merged")
    (tmp_path / "secret").write_text("x")
    (folder / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"not sent to the hub[\s\S]*LICENSE"):
        plan_push(folder, "me/merged")


def test_a_folder_without_recipe_or_results_is_no_export(tmp_path: Path) -> None:
    folder = export(tmp_path / "merged")
    (folder / "evomerge_results.json").unlink()
    with pytest.raises(ConfigError, match=r"does not say what was measured[\s\S]*evomerge export"):
        plan_push(folder, "me/merged")
    (folder / "evomerge_recipe.json").unlink()
    with pytest.raises(ConfigError, match="no export"):
        plan_push(folder, "me/merged")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": "evomerge.results"}',
        '{"a": ' * 5000,
        results_text({**RESULTS, "licences": 3}, {}),
    ]
    + [results_text({**RESULTS, "tasks": tasks}, {}) for tasks in BAD_TASKS]
    + [results_text({**RESULTS, "public_test_tasks": 1}, {}), json.dumps({**RESULTS, "version": 1})],
)
def test_damaged_results(tmp_path: Path, text: str) -> None:
    folder = export(tmp_path / "merged")
    (folder / "evomerge_results.json").write_text(text)
    with pytest.raises(ConfigError, match="does not say what was measured"):
        plan_push(folder, "me/merged")


def test_a_licence_cannot_speak_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(tmp_path / "merged", licences={"a\x1b[2J": "mit"})
    show_push(plan_push(folder, "me/merged"), public=False)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert r"a\x1b[2J: mit" in printed


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "evomerge_recipe.json"])
def test_what_was_changed_after_the_export_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = export(tmp_path / "merged")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content + b" ")
    assert run(["push", str(folder), "--to", "me/merged", "--dry-run"]) == 2
    with pytest.raises(
        ConfigError, match=rf"no longer what was exported[\s\S]*Got: {name} \(changed\)\n[\s\S]*export RUN"
    ):
        plan_push(folder, "me/merged")
    (folder / name).write_bytes(content)
    plan_push(folder, "me/merged")


def test_a_missing_file_and_one_of_another_export_are_refused(tmp_path: Path) -> None:
    folder = export(tmp_path / "merged")
    (folder / "config.json").rename(folder / "generation_config.json")
    with pytest.raises(ConfigError, match=r"config\.json \(missing\), generation_config\.json \(not of this export\)"):
        plan_push(folder, "me/merged")


def test_edited_scores_are_refused(tmp_path: Path) -> None:
    folder = export(tmp_path / "merged")
    results = folder / "evomerge_results.json"
    results.write_text(results.read_text().replace('"value": 0.5', '"value": 0.9'))
    with pytest.raises(ConfigError, match=r"edited after the export[\s\S]*evomerge_results\.json"):
        plan_push(folder, "me/merged")


def test_the_card_may_be_edited_and_licence_texts_added(tmp_path: Path) -> None:
    folder = export(tmp_path / "merged")
    (folder / "README.md").write_text("mine")
    (folder / "NOTICE").write_text("terms")
    plan = plan_push(folder, "me/merged")
    assert plan.bundle.texts["README.md"].endswith("mine")
    assert "NOTICE" in plan.bundle.files


def test_results_of_another_merge(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belong to another merge"):
        plan_push(export(tmp_path / "merged", recipe="0" * 64), "me/merged")


def test_a_repository_that_holds_files_is_left_alone(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos["me/merged"] = FakeRepo(private=False, files={"model.safetensors": b"theirs", ".gitattributes": b""})
    plan = plan_push(export(tmp_path / "merged"), "me/merged")
    with pytest.raises(ConfigError, match=r"holds files already[\s\S]*model\.safetensors[\s\S]*--replace"):
        pushed(plan, hub)
    assert hub.repos["me/merged"].files["model.safetensors"] == b"theirs"
    pushed(plan, hub, replace=True)
    assert hub.repos["me/merged"].files["model.safetensors"] == WEIGHTS


def test_an_empty_repository_is_taken(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos["me/merged"] = FakeRepo(private=False, files={".gitattributes": b""})
    pushed(plan_push(export(tmp_path / "merged"), "me/merged"), hub, public=True)
    assert len(hub.repos["me/merged"].commits) == 1


def test_without_a_token_nothing_is_published(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConfigError, match=r"did not take it[\s\S]*401[\s\S]*hf auth login"):
        pushed(plan_push(export(tmp_path / "merged"), "me/merged"), hub)
    assert hub.repos == {}


def test_a_commit_that_is_refused_leaves_nothing_published(tmp_path: Path, hub: FakeHub) -> None:
    hub.refuse["/api/models/me/merged/commit/main"] = 403
    with pytest.raises(ConfigError, match=r"did not take it[\s\S]*403"):
        pushed(plan_push(export(tmp_path / "merged"), "me/merged"), hub)
    assert hub.repos["me/merged"].files == {}


def test_nobody_at_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # huggingface_hub tries six times
    plan = plan_push(export(tmp_path / "merged"), "me/merged")
    with pytest.raises(
        ConfigError,
        match=r"cannot be reached[\s\S]*at http://127\.0\.0\.1:9\n[\s\S]*Fix: check the network[\s\S]*HF_ENDPOINT",
    ):
        send(plan, public=False, replace=False, endpoint="http://127.0.0.1:9")
    assert "".join(capfd.readouterr()) == ""


def test_the_command_says_what_it_would_send(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(tmp_path / "merged")
    assert run(["push", str(folder), "--to", "me/merged", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said
    assert "Licence: apache-2.0" in said
    assert "Nothing was sent." in said

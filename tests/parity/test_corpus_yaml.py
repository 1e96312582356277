"""Every file of the corpus through mergekit and through evomerge: the same tensors, or a refusal in four parts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest
import torch
import transformers
import yaml

from evomerge.checkpoints.chat_templates import chat_template
from evomerge.checkpoints.reader import Checkpoint, open_checkpoint
from evomerge.checkpoints.tokenizers import read_vocabulary
from evomerge.cli.main import run
from evomerge.config.recipe_files import open_recipe_parents, read_recipe_file
from evomerge.dataflow.mergekit import mergekit_text
from evomerge.merging.plan import template_of
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.testing.mergekit_corpus import PLACE, CorpusFile, corpus, corpus_models, corpus_table

pytest.importorskip("mergekit")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "mergekit_corpus"
FILES = tuple(corpus(FOLDER))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    corpus_models(folder)
    return folder


@pytest.fixture(autouse=True)
def _offline_on_one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    torch.set_num_threads(before)


def run_mergekit(text: str, folder: Path, cache: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        options = MergeOptions(
            quiet=True,
            copy_tokenizer="chat_template" in text,
            write_model_card=False,
            num_threads=1,
            random_seed=7,
            lora_merge_cache=str(cache),
        )
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(folder), options, config_source=text)


def refuses(text: str, folder: Path, cache: Path) -> bool:
    """Whether mergekit stops with an error of whatever kind."""
    try:
        run_mergekit(text, folder, cache)
    except Exception:  # it raises what it comes across
        return True
    return False


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_both_tools_do_what_the_file_expects(
    file: CorpusFile, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = file.text.replace(PLACE, str(zoo))
    (tmp_path / "file.yaml").write_text(text)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    assert refuses(text, theirs, tmp_path / "loras") == file.refused_by_mergekit
    capsys.readouterr()
    code = run(["merge", str(tmp_path / "file.yaml"), "--to", str(ours)])
    said = capsys.readouterr()
    if file.refused:
        assert code in {2, 3}, said.err
        assert not ours.exists()
        assert all(part in said.err for part in ("Error: ", "\n  Got: ", "\n  Allowed: ", "\n  Fix: "))
        assert re.search(file.says, said.err, re.DOTALL), said.err
        return
    assert code == 0, said.err
    told = [line for line in said.out.splitlines() if line.startswith("Note: ") and "without base_model" not in line]
    assert file.told in said.out
    assert file.told or not told
    if file.refused_by_mergekit:
        return
    compare(file, open_checkpoint(ours), open_checkpoint(theirs), open_checkpoint(zoo / "base"))


@pytest.mark.parametrize("file", [file for file in FILES if not file.refused], ids=lambda file: file.name)
def test_what_is_read_is_written_and_read_again(file: CorpusFile, zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(file.text.replace(PLACE, str(zoo)))
    recipe = read_recipe_file(tmp_path / "file.yaml")
    template = open_recipe_parents(recipe).checkpoints[template_of(recipe)]
    (tmp_path / "again.yaml").write_text(mergekit_text(recipe, template))
    again = read_recipe_file(tmp_path / "again.yaml", recipe.compat)
    assert again == recipe


def test_exported_folders_are_absolute(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(zoo)
    rule = Rule("linear", {}, {"a": {"weight": 1.0}, "hub": {"weight": 1.0}})
    recipe = Recipe((ParentRef("a", "a"), ParentRef("hub", "org/model", "v1")), None, (rule,))
    text = mergekit_text(recipe, open_checkpoint("a"))
    assert [entry["model"] for entry in yaml.safe_load(text)["models"]] == [str(zoo / "a"), "org/model@v1"]


def compare(file: CorpusFile, ours: Checkpoint, theirs: Checkpoint, base: Checkpoint) -> None:
    names = [t.name for t in theirs.layout.tensors]
    assert [t.name for t in ours.layout.tensors] == names
    pairs = {name: (ours.tensor(name), theirs.tensor(name)) for name in names}
    assert all(a.dtype == b.dtype and a.shape == b.shape for a, b in pairs.values())
    if file.expect == "same":
        assert [name for name, (a, b) in pairs.items() if not torch.equal(a, b)] == []
    elif file.expect == "close":
        assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in pairs.values())
    else:
        assert file.expect == "random"
        assert abs(moved(ours, base) - moved(theirs, base)) < 0.01
    for key in ("num_hidden_layers", "vocab_size"):
        assert ours.config[key] == theirs.config[key]
    if "chat_template: " in file.text:
        texts = [rendered(chat_template(found.folder) or "") for found in (ours, theirs)]
        assert texts[0] == texts[1]
    if "\ntokenizer" in file.text:
        vocabularies = [read_vocabulary(found.folder) for found in (ours, theirs)]
        assert vocabularies[0] == vocabularies[1]


def rendered(template: str) -> str:
    messages = [{"role": "user", "content": "how?"}, {"role": "assistant", "content": "so"}]
    made = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)  # as transformers does
    return str(made.render(messages=messages, add_generation_prompt=True))


def moved(found: Checkpoint, base: Checkpoint) -> float:
    """The share of the entries that are not the base's: what random masks have kept."""
    pairs = [(found.tensor(t.name), base.tensor(t.name)) for t in base.layout.tensors if len(t.shape) > 1]
    return sum(int((a != b).sum()) for a, b in pairs) / sum(b.numel() for _, b in pairs)


def test_the_corpus_is_large_and_told_in_the_docs() -> None:
    assert len(FILES) >= 40
    assert all(file.feature and file.expect for file in FILES)
    assert corpus_table(FOLDER) in (ROOT / "docs" / "mergekit.md").read_text(encoding="utf-8")

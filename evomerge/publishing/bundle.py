"""What of an exported folder is sent, and the two files that are written for the hub: the card and its results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from evomerge.checkpoints.seal import matches
from evomerge.config.export import CARD_FILE, MERGEKIT_FILE, RECIPE_FILE
from evomerge.config.results import RESULTS_FILE
from evomerge.errors import ConfigError
from evomerge.publishing.licences import UNSTATED, Verdict
from evomerge.recipe.recipe import ParentRef, Recipe

EVAL_RESULTS_FILE: Final = ".eval_results/evomerge.yaml"

_SENT: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors",
        r"model\.safetensors\.index\.json",
        r"(config|generation_config|adapter_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json",
        r"(vocab\.json|vocab\.txt|merges\.txt|tokenizer\.model|chat_template\.(jinja|json))",
        r"(LICENSE|LICENCE|NOTICE|USE_POLICY)[A-Za-z0-9._-]{0,60}",
        *(re.escape(name) for name in (CARD_FILE, RECIPE_FILE, RESULTS_FILE, MERGEKIT_FILE)),
        r"evomerge_recipe\.prompts\.json",
    )
)
"""What may be sent. Anything else in the folder was not written by `evomerge export`: it may be private."""

_OWN: Final = re.compile(r"(LICENSE|LICENCE|NOTICE|USE_POLICY).*")
"""What the publisher may add."""

_LICENCE: Final = re.compile(r"(LICENSE|LICENCE)[A-Za-z0-9._-]*")
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Bundle:
    """What is sent in one commit.

    Attributes:
        files: name in the repository -> file on this machine.
        texts: name in the repository -> content written for the hub; takes the place of a file of that name.
    """

    files: Mapping[str, Path]
    texts: Mapping[str, str]

    @property
    def n_bytes(self) -> int:
        """Of everything that is sent."""
        kept = [path for name, path in self.files.items() if name not in self.texts]
        return sum(path.stat().st_size for path in kept) + sum(len(text.encode()) for text in self.texts.values())


def files_of(folder: Path) -> dict[str, Path]:
    """The folder's files.

    Raises:
        ConfigError: for a link, a folder, or a file that no export has written.
    """
    found = {entry.name: entry for entry in sorted(folder.iterdir())}
    alien = [n for n, e in found.items() if e.is_symlink() or not e.is_file() or not _is_sent(n)]
    if alien:
        raise ConfigError(
            "The folder holds something that is not sent to the hub.",
            got=", ".join(repr(name) for name in alien[:5]),
            allowed="what `evomerge export` writes, and files LICENSE*, NOTICE*, USE_POLICY*",
            fix="move it elsewhere: whatever is pushed can be read by others.",
        )
    return found


def check_as_exported(files: Mapping[str, Path], digests: Mapping[str, str]) -> None:
    """Refuse files that are not what `evomerge export` wrote; the card may be edited, licence texts may be added.

    Reads every byte.

    Args:
        files: of `files_of`.
        digests: file name -> digest, of `read_results`.

    Raises:
        ConfigError: naming every file that was changed, that is missing, or that the export did not write.
    """
    expected = {name: digest for name, digest in digests.items() if name != CARD_FILE}
    changed = [f"{name} (missing)" for name in expected if name not in files]
    for name, path in files.items():
        if name in expected and not matches(path, expected[name]):
            changed.append(f"{name} (changed)")
        elif name not in digests and name != RESULTS_FILE and not _OWN.fullmatch(name):
            changed.append(f"{name} (not of this export)")
    if changed:
        raise ConfigError(
            "The folder is no longer what was exported.",
            got=", ".join(sorted(changed)),
            allowed=f"the files that {RESULTS_FILE} lists, as they were written; {CARD_FILE} may be edited, and files "
            "LICENSE*, NOTICE*, USE_POLICY* may be added",
            fix="export the merge again: evomerge export RUN --to DIR.",
        )


def _is_sent(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in _SENT)


def licence_files(files: Mapping[str, Path]) -> tuple[str, ...]:
    """Names of the files that hold licence texts."""
    return tuple(name for name, path in files.items() if _LICENCE.fullmatch(name) and path.stat().st_size)


def card_for_hub(card: str, recipe: Recipe, verdict: Verdict) -> str:
    """The exported card with the front matter that the hub reads.

    Args:
        card: as exported; its own front matter is replaced.
        recipe: of the merge.
        verdict: on its licence.
    """
    body = card.split("\n---\n", 1)[1] if card.startswith("---\n") and "\n---\n" in card else card
    front: dict[str, Any] = {
        "base_model": hub_parents(recipe.parents),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "evomerge"],
        "license": verdict.licence,
    }
    if not front["base_model"]:
        del front["base_model"], front["base_model_relation"]
    if verdict.licence == "other":
        found = dict.fromkeys(licence for licence in verdict.parents.values() if licence != UNSTATED)
        front["license_name"] = " AND ".join(found) or UNSTATED
    notices = "".join(f"\n{notice}\n" for notice in verdict.notices)
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{notices}\n{body.lstrip()}"


def hub_parents(parents: Sequence[ParentRef]) -> list[str]:
    """Ids of the parents that come from the hub, ingredients of made ones included, each once."""
    found: dict[str, None] = {}
    for parent in parents:
        if parent.made is not None:
            of = (*parent.made.of, *(() if parent.made.base is None else (parent.made.base,)))
            found |= dict.fromkeys(hub_parents(of))
        elif _HUB_ID.fullmatch(parent.source) and parent.revision is not None:
            found[parent.source] = None
    return list(found)


def local_parents(parents: Sequence[ParentRef]) -> list[str]:
    """Names of the parents that are folders of this machine: their paths stand in the recipe that is sent."""
    names: list[str] = []
    for parent in parents:
        if parent.made is not None:
            of = (*parent.made.of, *(() if parent.made.base is None else (parent.made.base,)))
            names += [name for name in local_parents(of) if name not in names]
        elif not hub_parents([parent]):
            names.append(parent.name)
    return names


def eval_results(results: Mapping[str, Any]) -> str | None:
    """The text of `.eval_results/evomerge.yaml`; None when no task of the report set stands on the hub.

    Args:
        results: of `read_results`.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    public = results.get("public_test_tasks", [])
    entries = [
        EvalResultEntry(
            dataset_id=task["dataset"],
            task_id=task["task"],
            value=round(float(task["value"]), 6),
            notes=_notes(task, results, public=task["task"] in public),
        )
        for task in results["tasks"]
        if task.get("dataset")
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False) if entries else None


def _notes(task: Mapping[str, Any], results: Mapping[str, Any], *, public: bool) -> str:
    interval = f"95 % {float(task['low']):.4f} to {float(task['high']):.4f}"
    said = (
        f"{task['metric']} on {task['n']} items that took no part in searching or choosing ({interval}); "
        f"merge found by evomerge among {results['tried']} candidates"
    )
    return f"{said}; the search used other items of the same public test split" if public else said

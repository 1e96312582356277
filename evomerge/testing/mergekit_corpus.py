"""The corpus of mergekit files: models for it, what each file's first lines expect, and the table of the docs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.testing.tiny import tiny_checkpoint

PLACE = "ZOO"
"""Stands in the files for the folder of the models."""
_TEMPLATES = {"a": "{% for m in messages %}{{ m.content }}{% endfor %} A", "b": None, "c": None}


@dataclass(frozen=True)
class CorpusFile:
    """One file.

    Attributes:
        name: without ending.
        feature: what it shows.
        expect: `same`, `close`, `random`, `both refuse`, `mergekit refuses: WHY` or `evomerge refuses: WHY`.
        says: regular expression for our message.
        told: a part of what we tell about it.
        text: with `PLACE` for the folder of the models.
    """

    name: str
    feature: str
    expect: str
    says: str
    told: str
    text: str

    @property
    def refused(self) -> bool:
        """Whether evomerge refuses it."""
        return self.expect.startswith(("both refuse", "evomerge refuses"))

    @property
    def refused_by_mergekit(self) -> bool:
        """Whether mergekit stops at it."""
        return self.expect.startswith(("both refuse", "mergekit refuses"))

    def row(self) -> str:
        """The file's row of the docs' table."""
        theirs = "merges"
        if self.refused_by_mergekit:
            theirs = "refuses" if self.expect == "both refuse" else self.expect.removeprefix("mergekit ")
        ours = (
            "merges"
            if theirs.startswith("refuses: ")
            else {
                "same": "the same bits",
                "close": "equal up to rounding",
                "random": "other random masks, the same shares",
                "both refuse": "refuses",
            }.get(self.expect, self.expect.removeprefix("evomerge "))
        )
        return f"| `{self.name}` | {self.feature} | {theirs} | {ours}{', and says so' if self.told else ''} |"


def corpus(folder: Path) -> Iterator[CorpusFile]:
    """All files of a folder, sorted by name."""
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        head = dict(line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("# "))
        feature, expect, says, told = (head.get(key, "") for key in ("feature", "expect", "says", "told"))
        yield CorpusFile(path.stem, feature, expect, says, told, text)


def corpus_table(folder: Path) -> str:
    """The table of the docs."""
    head = "| file | shows | mergekit 0.1.5 | evomerge |\n|---|---|---|---|\n"
    return head + "".join(f"{file.row()}\n" for file in corpus(folder))


def corpus_models(folder: Path) -> None:
    """The models that the files name: a base, three children, and odd ones."""
    from safetensors.torch import load_file, save_file

    for i, name in enumerate(("base", "a", "b", "c")):
        tiny_checkpoint(folder / name, "llama", i, tokenizer=True, tie=False)
    base = load_file(folder / "base" / "model.safetensors")
    for name in "abc":
        path = folder / name / "model.safetensors"
        own = load_file(path)
        save_file({k: base[k] + 0.05 * own[k] for k in own}, path, metadata={"format": "pt"})
    for name, template in _TEMPLATES.items():
        if template is not None:
            (folder / name / "chat_template.jinja").write_text(template)
    for name in ("base", "a", "b"):
        _half(folder / name, folder / f"half-{name}")
    tiny_checkpoint(folder / "deep", "llama", 5, tokenizer=True, tie=False, num_hidden_layers=3)
    tiny_checkpoint(folder / "tied", "llama", 6, tokenizer=True, tie=True)
    _reordered(folder / "b", folder / "reordered")
    tiny_checkpoint(folder / "smaller", "llama", 7, tokenizer=True, tie=False, vocab_size=60)
    tiny_checkpoint(folder / "padded", "llama", 8, tokenizer=True, tie=False)
    _without_last_tokens(folder / "padded" / "tokenizer.json", 3)
    _adapter(folder / "base", folder / "lora")


def _half(source: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    _copy_side(source, folder, {"dtype": "bfloat16"})
    tensors = {k: v.to(torch.bfloat16) for k, v in load_file(source / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _copy_side(source: Path, folder: Path, changes: dict[str, Any]) -> None:
    folder.mkdir()
    for path in source.iterdir():
        if path.name == "config.json":
            config = json.loads(path.read_text()) | changes
            (folder / path.name).write_text(json.dumps(config))
        elif path.name != "model.safetensors":
            (folder / path.name).write_bytes(path.read_bytes())


def _reordered(source: Path, folder: Path) -> None:
    """The model with its ordinary tokens numbered the other way round."""
    import torch
    from safetensors.torch import load_file, save_file

    _copy_side(source, folder, {})
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary, last = content["model"]["vocab"], len(content["model"]["vocab"]) + 2
    content["model"]["vocab"] = {t: i if i < 3 else last - i for t, i in vocabulary.items()}
    path.write_text(json.dumps(content))
    rows = torch.tensor([i if i < 3 else last - i for i in range(len(vocabulary))])
    tensors = load_file(source / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][rows].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _without_last_tokens(path: Path, number: int) -> None:
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {t: i for t, i in vocabulary.items() if i < len(vocabulary) - number}
    path.write_text(json.dumps(content))


def _adapter(source: Path, folder: Path) -> None:
    """A LoRA of rank 4 on the attention of `source`, saved as PEFT saves it."""
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    seeded = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=seeded))
    adapted.save_pretrained(str(folder))

"""From parents as recipes name them to parents whose tensors can be read: opened, planned, and made when it is time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, final

from evomerge.checkpoints.finite import is_finite
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.overlay import Overlay, OverlaySpec
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.shards import SINGLE
from evomerge.checkpoints.writer import DIGEST_FILE, write_files, write_tensors
from evomerge.digest import digest_file, digest_json, digest_text
from evomerge.errors import ConfigError, NonFinite, RecipeError, suggest
from evomerge.layout import Layout
from evomerge.recipe.recipe import Making, Number, ParentRef
from evomerge.types import Digest
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, ParentReport, Prompts, Report, quiet
from evomerge.virtual.makers import load_maker

if TYPE_CHECKING:
    import torch

FORMAT: Final = 2
"""Of made parents; raised when what `content` is taken over changes."""

_OF_NO_EFFECT: Final = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""Keys of config.json that say where a model came from, and nothing about how it runs."""


class Pending(NamedTuple):
    """A parent that is planned, and made when it is needed.

    Attributes:
        parent: what will be readable.
        maker: makes it.
        ingredients: from these.
        plan: of its tensors.
    """

    parent: Overlay
    maker: Maker
    ingredients: Ingredients
    plan: MadePlan


@final
class ParentOpener:
    """Opens parents, those they are made from first; equal ones once.

    Args:
        folder: where made parents are kept, each in a folder named by its content; may be shared by runs and machines.
        prompts: digest -> the prompts that makers with data are shown.
    """

    def __init__(self, folder: Path, prompts: Mapping[Digest, Prompts] | None = None) -> None:
        self.folder = folder
        self._prompts = dict(prompts or {})
        self._opened: dict[ParentRef, OpenParent] = {}
        self._planned: list[Pending] = []
        self._sound: set[Path] = set()

    def add_prompts(self, prompts: Mapping[Digest, Prompts]) -> None:
        """Have more prompts at hand."""
        self._prompts |= prompts

    def prompts_of(self, ref: ParentRef) -> dict[Digest, Prompts]:
        """The prompts behind a parent and all that it is made from, as far as they are at hand."""
        if ref.made is None:
            return {}
        found = {d: p for d, p in self._prompts.items() if d == ref.made.data}
        for ingredient in (*ref.made.of, *(() if ref.made.base is None else (ref.made.base,))):
            found |= self.prompts_of(ingredient)
        return found

    def open(self, ref: ParentRef) -> OpenParent:
        """A parent's headers; one that is made from others is planned, and not made.

        Raises:
            ModelError: when it, or something that it is made from, cannot be opened or does not fit.
            ConfigError: for an unknown maker.
            RecipeError: for settings that the maker does not have, a wrong number of models, or missing prompts.
        """
        if ref not in self._opened:
            self._opened[ref] = (
                open_checkpoint(ref.source, ref.revision) if ref.made is None else self._plan(ref, ref.made)
            )
        return self._opened[ref]

    def _plan(self, ref: ParentRef, made: Making) -> Overlay:
        maker = load_maker(made.method)
        settings = complete_settings(maker.spec, made)
        prompts = self._prompts_of(maker.spec, made)
        base = None if made.base is None else self.open(made.base)
        ingredients = Ingredients(ref, tuple(self.open(p) for p in made.of), base, settings, prompts)
        plan = maker.plan(ingredients)
        content = _content(maker, ingredients, made.data)
        file = self.folder / content / SINGLE if plan.changed else None
        where = (self._tokenizer_of(plan), maker.revision(ingredients))
        spec = OverlaySpec(_word_for(ref), content, file, plan.changed, plan.aliases, plan.config, *where)
        overlay = Overlay(plan.under, spec)
        self._planned.append(Pending(overlay, maker, ingredients, plan))
        return overlay

    def known(self, ref: ParentRef) -> ParentRef:
        """The parent with the revision and the content that were found, and so for all that it is made from.

        Reads every weight once for the digests.

        Raises:
            ModelError, ConfigError, RecipeError: as `open`.
        """
        opened = self.open(ref)
        made = ref.made
        if made is not None:
            base = None if made.base is None else self.known(made.base)
            made = replace(made, of=tuple(self.known(p) for p in made.of), base=base)
        return replace(ref, revision=opened.revision or ref.revision, content=opened.content, made=made)

    def _tokenizer_of(self, plan: MadePlan) -> Path | None:
        """The folder of a planned parent's tokenizer, written if it is a new one; None for that of `plan.under`."""
        if plan.tokenizer is None or isinstance(plan.tokenizer, Path):
            return plan.tokenizer
        digest = digest_json({name: sha256(content).hexdigest() for name, content in plan.tokenizer.items()})
        folder = (self.folder / f"tokenizer-{digest}").absolute()
        if not folder.is_dir():
            try:
                write_files(folder, plan.tokenizer)
            except ConfigError:
                if not folder.is_dir():  # else another process that shares the folder was faster
                    raise
        return folder

    def _prompts_of(self, spec: MakerSpec, made: Making) -> Prompts:
        if not spec.needs_prompts:
            return ()
        if made.data is None or made.data not in self._prompts:
            raise RecipeError(
                f"A parent made by {spec.name!r} needs the prompts that it was made with.",
                got="no prompts" if made.data is None else f"prompts {made.data[:12]}, which are not here",
                allowed="a recipe beside its prompts, as `evomerge export` writes them",
                fix="export the merge as a checkpoint from its run, or bring the prompts' file.",
            )
        return self._prompts[made.data]

    def pending(self) -> tuple[Pending, ...]:
        """What has to be made, in an order in which it can be."""
        return tuple(
            p for p in self._planned if p.parent.spec.file is not None and not self._is_sound(p.parent.spec.file)
        )

    def made(self) -> dict[str, str]:
        """Name -> digest of the file of every parent that is made and holds tensors of its own."""
        files = {p.ingredients.ref.name: p.parent.spec.file for p in self._planned}
        return {name: _recorded(f) for name, f in files.items() if f is not None and f.is_file()}

    def _is_sound(self, file: Path) -> bool:
        """Whether a made file is there as it was written; read once, and believed from then on."""
        if file not in self._sound and file.is_file() and digest_file(file) == _recorded(file):
            self._sound.add(file)
        return file in self._sound

    def make(self, report: ParentReport = quiet) -> None:
        """Make everything that is pending.

        Args:
            report: told which parent is being made, and how many of how many steps are done.

        Raises:
            NonFinite: when a made tensor holds NaN or infinity; nothing of that parent is kept.
            ConfigError, DiskFull: when the folder cannot be written.
        """
        for pending in self.pending():
            file = pending.parent.spec.file
            if file is None or self._is_sound(file):  # two names for one content: made once
                continue
            if file.is_file():  # damaged since it was made
                shutil.rmtree(file.parent)
            layout = Layout(
                pending.plan.under.layout.n_layers, tuple(sorted(pending.plan.changed, key=lambda t: t.name))
            )
            try:
                write_tensors(file.parent, layout, _checked(pending, partial(report, pending.parent.source)))
            except ConfigError:
                if not file.is_file():  # else another process that shares the folder was faster
                    raise
            self._sound.add(file)


def _recorded(file: Path) -> str:
    """The digest that was written beside a made file; empty where there is none."""
    try:
        return file.with_name(DIGEST_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _checked(pending: Pending, report: Report) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in pending.maker.tensors(pending.ingredients, pending.plan, report):
        if not is_finite(tensor):
            raise NonFinite(
                "A made parent holds NaN or infinity.",
                got=f"{name} of {pending.parent.source}, made by {pending.maker.spec.name}",
                allowed="finite values",
                fix="use other settings, or leave this parent out.",
            )
        yield name, tensor


def _word_for(ref: ParentRef) -> str:
    """How a made parent is called in progress and messages: rules for tokens are no name."""
    return ref.name if not ref.source or ref.source.startswith("{") else ref.source


def complete_settings(spec: MakerSpec, made: Making) -> dict[str, Number]:
    """The settings with defaults filled in.

    Raises:
        RecipeError: for unknown, missing or illegal settings, then for a wrong number of models or a missing base.
    """
    fix = "correct how the parent is made."
    for name in made.settings:
        if name not in spec.parameters:
            raise RecipeError(
                f"The maker {spec.name!r} has no such setting.",
                got=name,
                allowed=suggest(name, spec.parameters),
                fix=fix,
            )
    found: dict[str, Number] = {}
    for name, parameter in spec.parameters.items():
        value = made.settings.get(name, parameter.default)
        if value is None or not parameter.accepts(value):
            raise RecipeError(
                f"A setting of the maker {spec.name!r} is missing or out of bounds.",
                got=f"{name} = {value}",
                allowed=parameter.allowed,
                fix=fix,
            )
        found[name] = value if isinstance(value, bool) else float(value)
    most = spec.max_models if spec.max_models is not None else len(made.of)
    if not spec.min_models <= len(made.of) <= most or spec.needs_base != (made.base is not None):
        bounds = (
            f"{spec.min_models}" if spec.max_models == spec.min_models else f"{spec.min_models} to {spec.max_models}"
        )
        raise RecipeError(
            f"The maker {spec.name!r} is given the wrong models.",
            got=f"{len(made.of)} model{'' if len(made.of) == 1 else 's'} and {'a' if made.base else 'no'} base",
            allowed=f"{bounds} model{'' if bounds == '1' else 's'} and {'a' if spec.needs_base else 'no'} base",
            fix=fix,
        )
    return found


def _identity(parent: OpenParent) -> list[str]:
    """What of an ingredient decides what is made from it: its weights, and how they are run."""
    config = {key: value for key, value in parent.config.items() if key not in _OF_NO_EFFECT}
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)  # configs may hold Infinity
    return [parent.content, digest_text(text)]


def _content(maker: Maker, ingredients: Ingredients, data: Digest | None) -> Digest:
    """What names a made parent: everything that its tensors depend on."""
    base = ingredients.base
    return digest_json(
        {
            "format": FORMAT,
            "maker": [maker.spec.name, maker.spec.version],
            "of": [_identity(p) for p in ingredients.of],
            "base": None if base is None else _identity(base),
            "settings": dict(ingredients.settings),
            "data": data,
            "extra": maker.extra_content(ingredients),
        }
    )

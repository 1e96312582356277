"""The worker's one model in memory: candidates are merged into its weights in place, and never touch the disk."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch

from evomerge.checkpoints.dtypes import torch_dtype
from evomerge.checkpoints.loading_errors import LOADING_ERRORS
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.overlay import Overlay
from evomerge.errors import MergeError, ModelError
from evomerge.layout import ROLES, Role
from evomerge.merging.execute import Work, merge_into, new_tensor, prepare
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.placement import Place, check_loaded, own_memory, place
from evomerge.merging.plan import MergePlan, TensorPlan, plan_merge
from evomerge.merging.sharding import Ferry, Send, Sharding, connect
from evomerge.recipe.recipe import Recipe


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars, and no warnings about weights that a changed config makes new: the first merge writes them."""
    from transformers.utils import logging as words

    shown, level = words.is_progress_bar_enabled(), words.get_verbosity()
    words.disable_progress_bar()
    words.set_verbosity_error()
    try:
        yield
    finally:
        words.set_verbosity(level)
        if shown:
            words.enable_progress_bar()


def _other_config(folder: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `from_pretrained` is told so that the model is built after `config` instead of the folder's config.json."""
    from transformers import AutoConfig

    own = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return {"config": type(own).from_dict(dict(config)), "ignore_mismatched_sizes": True}


def load_model(
    folder: str, dtype: str, device: str, config: Mapping[str, Any] | None = None, sharding: Sharding | None = None
) -> Any:
    """A transformers model in eval mode whose weights lie in memory of their own and need no gradients.

    Args:
        folder: a checkpoint folder.
        dtype: `"auto"` for the checkpoint's, or torch's spelling.
        device: torch's spelling.
        config: what the model is built after, where that is not the folder's config.json; tensors that the folder
            lacks, or has in another shape, then hold anything until something is merged into them.
        sharding: which layers lie on which device; None puts all of it on `device`. The model does not yet run there.

    Raises:
        ModelError: when transformers cannot load it, or it cannot be spread.
    """
    from transformers import AutoModelForCausalLM

    try:
        with _quiet_transformers(), torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                **({} if config is None else _other_config(folder, config)),
            )
    except LOADING_ERRORS as error:
        raise ModelError(
            "transformers cannot load the model that candidates are merged into.",
            got=f"{folder}: {type(error).__name__}: {str(error)[:300]}",
            allowed="a causal language model that transformers knows, without code of its own",
            fix="check that AutoModelForCausalLM.from_pretrained loads the folder.",
        ) from error
    own_memory(model, device, sharding)
    return model.eval()


def _files(parent: OpenParent) -> OpenParent:
    """The parent whose files transformers loads: what lies beneath all overlays."""
    return _files(parent.under) if isinstance(parent, Overlay) else parent


@final
class ResidentModel:
    """A model whose weights are whatever recipe was applied last.

    A candidate is rounded to the dtype that its recipe stores and then held in the model's dtype, so that the model
    equals the exported checkpoint loaded in that dtype, bit for bit. Tensors whose numbers did not change since the
    last candidate are not merged again.

    Args:
        pool: the parents.
        template: the parent that gives config and architecture.
        dtype: of the model in memory: `"auto"` for the template's, or torch's spelling.
        kernels: compiled or eager.
        device: torch's spelling.
        sharding: which layers lie on which device, where they are several; tensors are merged where they lie, if the
            pool knows it too.
        send: brings a tensor to a device of `sharding`; None moves it.

    Raises:
        MergeError: when the template is not in the pool.
        ModelError: when transformers cannot load the template, its tensors do not line up, or it cannot be spread.

    Attributes:
        model: the transformers model, in eval mode.
        ferry: carries tensors between devices; None on a single one.
    """

    def __init__(
        self,
        pool: ParentPool,
        template: str,
        *,
        dtype: str = "auto",
        kernels: Kernels,
        device: str = "cpu",
        sharding: Sharding | None = None,
        send: Send | None = None,
    ) -> None:
        checkpoint = pool.checkpoint(template)
        files = _files(checkpoint)
        config = None if checkpoint.config == files.config else checkpoint.config
        self.model = load_model(str(checkpoint.folder), dtype, device, config, sharding)
        self.ferry: Ferry | None = None if sharding is None else connect(self.model, sharding, send)
        self._pool = pool
        self._kernels = kernels
        self._layout = checkpoint.layout
        self._places = place(self.model, self._layout.tensors)
        check_loaded(self._places, files, self.model)
        self._applied: dict[str, Hashable] = {}
        self.n_merged = 0

    @property
    def packs(self) -> bool:
        """Whether candidates are merged from packed task vectors now."""
        return self._pool.packs

    def apply(self, recipe: Recipe, layers: Collection[int] | None = None) -> None:
        """Merge a recipe into the model, in place; its path is not looked at.

        Args:
            recipe: its parents are in the pool.
            layers: those that will run; None merges every layer. What stands outside the layers is always merged, and
                the other layers keep an older candidate's values.

        Raises:
            MergeError: when the recipe does not fit the parents or the model.
            RecipeError: when a rule does not fit its method.
            NonFinite: when a merged tensor holds NaN or infinity; the model is then no candidate until the next
                `apply` succeeds.
        """
        plan = plan_merge(recipe, self._pool)
        self._check(plan)
        self.n_merged = 0
        with torch.no_grad():
            for tensor in plan.tensors:
                wanted = layers is None or tensor.info.layer is None or tensor.info.layer in layers
                if wanted and tensor.info.name in self._places:
                    self._apply_one(plan, tensor)

    def key(self, layer: int | None, roles: Collection[Role] = ROLES) -> Hashable:
        """What names the bits of a layer: equal keys, also of two models over one pool, mean equal bits.

        Args:
            layer: the layer, which was merged; None takes the tensors outside the layers.
            roles: of the tensors that count.
        """
        chosen = [t.name for t in self._layout.tensors if t.layer == layer and t.role in roles]
        return (layer, tuple((name, self._applied.get(name)) for name in chosen))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What the model holds now, under checkpoint names: views where a tensor is one run of memory, else copies."""
        for name, at in self._places.items():
            flat = at.flat
            yield name, at.read() if flat is None else flat.view(at.shape)

    def _apply_one(self, plan: MergePlan, tensor: TensorPlan) -> None:
        name = tensor.info.name
        work = prepare(plan, tensor, self._pool, self._kernels)
        if self._applied.get(name) == work.key:
            return
        self._applied.pop(name, None)
        self._write(tensor, work, self._places[name])
        self._applied[name] = work.key
        self.n_merged += 1

    def _write(self, tensor: TensorPlan, work: Work, target: Place) -> None:
        flat = target.flat
        if flat is not None and target.dtype == torch_dtype(tensor.dtype):
            merge_into(tensor, work, flat)
        else:
            rounded = new_tensor(tensor).view(-1).to(target.device)
            merge_into(tensor, work, rounded)
            target.write(rounded)

    def _check(self, plan: MergePlan) -> None:
        """Refuse a recipe of other tensors than the model's: some would keep an older candidate's values."""
        planned = {t.info.name for t in plan.tensors}
        missing = sorted(self._places.keys() - planned)
        if missing:
            raise MergeError(
                "A recipe does not cover the resident model.",
                got=f"{missing[0]} is not among the tensors of parent {plan.template!r}",
                allowed="the tensors of the template",
                fix="use parents of the template's architecture.",
            )

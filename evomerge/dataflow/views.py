"""A path through the layers of several models, as one transformers model of their class that owns no weights.

Every hop is a shallow copy of a layer: it has its own number, so its own slot in the cache, and its own gain, and
shares every parameter and buffer with the model it comes from.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, final

import torch

from evomerge.dataflow.families import Family, family_of, layer_lists
from evomerge.errors import ModelError
from evomerge.merging.sharding import Ferry
from evomerge.recipe.path import Hop, check_hops, check_layers

_SHARED_DICTS: Final = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_HOOKS: Final = tuple(k for k in vars(torch.nn.Module()) if k.endswith("_hooks") or "_hooks_" in k)
_BOUND: Final = ("forward", "_compiled_call_impl", "_compiled_call", "_output_capturing_hooks_installed")
"""What an instance may carry that calls the original in the copy's place."""


def view_of(module: Any) -> Any:
    """A shallow copy of a module: the same class, parameters, buffers and children, and no hooks.

    What is later set on the copy (children, buffers, hooks, `forward`) does not reach the original.
    """
    state = dict(vars(module))
    for key in _SHARED_DICTS:
        state[key] = state[key].copy()
    for key in _HOOKS:
        state[key] = type(state[key])()
    for key in _BOUND:
        state.pop(key, None)
    view = object.__new__(type(module))
    vars(view).update(state)
    return view


def _own(module: Any, dotted: str) -> Any:
    """Put views in place of a submodule of a view and of everything on the way to it; the innermost one."""
    for name in dotted.split("."):
        module._modules[name] = view_of(module._modules[name])
        module = module._modules[name]
    return module


def _scaled(gain: float, _module: Any, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
    return output * gain


def _own_children(view: Any) -> Any:
    """Put views in place of all children of a view; the view."""
    for name, child in view._modules.items():
        if child is not None:
            view._modules[name] = view_of(child)
    return view


_ELSEWHERE: Final = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "max_position_embeddings",
        "pad_token_id",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "vocab_size",
    }
)
"""Settings that say nothing about what a layer computes: they belong to what stands outside the layers."""


def _setting_differences(merged: Any, source: Any) -> list[str]:
    """Settings that layers are built with and in which two models differ."""
    a, b = merged.config.to_dict(), source.config.to_dict()
    keys = sorted(k for k in {**a, **b} if k not in _ELSEWHERE and not k.endswith(("dropout", "pdrop")))
    return [f"{k} is {b.get(k)!r}, not {a.get(k)!r}" for k in keys if a.get(k) != b.get(k)]


def _check_source(name: str, merged: Any, source: Any) -> None:
    """Refuse a source whose layers would not compute, in the merged model's place, what its class computes there."""
    found = [
        f"{what} {there}, not {here}"
        for what, here, there in (
            ("class", type(merged).__name__, type(source).__name__),
            ("dtype", merged.dtype, source.dtype),
            ("device", merged.device, source.device),
        )
        if here != there
    ] or _setting_differences(merged, source)
    if found:
        raise ModelError(
            "A model cannot lend its layers to a path.",
            got=f"{name!r}: {'; '.join(found)}",
            allowed="models of one class, dtype, device and config",
            fix="build the sources from the merged model's template, with the parents' weights.",
        )


@final
class PathRunner:
    """Makes models of paths through the layers of a merged model and of others like it.

    A path model is of the merged model's class, with the merged model's config (as deep as the path, per-layer lists
    along it), embeddings, final norm and head. Making one copies no weights, and changes neither the merged model nor
    the sources; what is done to their weights in place is seen. Hooks on them are not.

    A path model is for running. Whatever moves or casts it moves the sources' weights, and saving it would lose the
    gains, which no tensor holds: `dataflow.export` writes paths.

    Args:
        merged: a transformers causal language model in eval mode; the layers of hops without a parent are its own.
        sources: parent -> model with that parent's weights, built with the merged model's class and config. The
            merged model may stand here too.
        ferry: of the merged model, where its layers lie on several devices; the sources' layers lie likewise.

    Raises:
        ModelError: when paths cannot run through the architecture, or a source is of another one.

    Attributes:
        family: where the architecture keeps its layers.
        n_layers: how many it has.
    """

    def __init__(self, merged: Any, sources: Mapping[str, Any], ferry: Ferry | None = None) -> None:
        self._ferry = ferry
        self.family: Family = family_of(merged.config)
        self._merged = merged
        self._sources = dict(sources)
        self._lists = layer_lists(merged.config)
        self.n_layers = len(self._stack(merged))
        for name, source in self._sources.items():
            if source is not merged:
                _check_source(name, merged, source)

    def model(self, hops: Sequence[Hop]) -> Any:
        """The model that runs a path; it costs about 0.03 ms per hop to make.

        Args:
            hops: the layers in the order in which they run.

        Raises:
            RecipeError: for an empty or too long path, a parent that is no source, or a layer that there is not.
        """
        check_hops(hops, tuple(self._sources))
        check_layers(hops, self.n_layers)
        config = self._config([hop.layer for hop in hops])
        model = _own_children(view_of(self._merged))
        inner = _own_children(model._modules[self.family.inner])
        model.config = inner.config = config
        if "has_sliding_layers" in vars(inner):
            inner.has_sliding_layers = "sliding_attention" in config.layer_types
        views = {str(k): self._view(k, hop, config) for k, hop in enumerate(hops)}
        if self._ferry is not None:
            self._ferry.land(views[str(len(hops) - 1)])
        inner._modules[self.family.stack]._modules = views
        return model

    def layers(self, model: Any) -> list[Any]:
        """The hops' layer views of a path model, in order."""
        return list(self._stack(model))

    def _stack(self, model: Any) -> Any:
        return getattr(getattr(model, self.family.inner), self.family.stack)

    def _config(self, layers: Sequence[int]) -> Any:
        config = copy.copy(self._merged.config)
        config.num_hidden_layers = len(layers)
        for key, values in self._lists.items():
            setattr(config, key, [values[i] for i in layers])
        return config

    def _view(self, number: int, hop: Hop, config: Any) -> Any:
        source = self._merged if hop.parent is None else self._sources[hop.parent]
        layer = view_of(self._stack(source)[hop.layer])
        for module in (layer, _own(layer, self.family.attention)):
            if "layer_idx" in vars(module):
                module.layer_idx = number
            if "config" in vars(module):
                module.config = config
        if hop.gain != 1:
            for branch in self.family.ends:
                _own(layer, branch.end).register_forward_hook(partial(_scaled, hop.gain))
        if self._ferry is not None:
            self._ferry.board(layer, hop.layer)
        return layer

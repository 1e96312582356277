"""What PEFT's `adapter_config.json` says of a LoRA adapter; options that change the arithmetic are refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from evomerge.checkpoints.path_patterns import ALLOWED, PathTable
from evomerge.checkpoints.strict_json import damaged, quoted, read_object
from evomerge.errors import ModelError

_REFUSED: Final = (
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "ensure_weight_tying",
    "megatron_config",
)
"""Options under which an adapter is no longer `W + scale B A` on the base's own tensors."""
_CHANGES_THE_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take the factors' start out of the base, which is therefore no longer the base on the hub."""


@dataclass(frozen=True)
class AdapterConfig:
    """The numbers of a LoRA adapter.

    Attributes:
        r: rank where no pattern says otherwise.
        alpha: numerator of the scale where no pattern says otherwise.
        rslora: the scale is `alpha / sqrt(rank)` instead of `alpha / rank` (Kalajdzievski 2023).
        dora: magnitudes are trained apart (Liu et al. 2024).
        rank_pattern: pattern of the end of a module's path -> its rank.
        alpha_pattern: the same for `alpha`.
        whole: names of the modules that were trained as copies of their own (`modules_to_save`).
        base: what the config calls the base; a word for people.
    """

    r: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    rank_pattern: PathTable = field(default_factory=lambda: PathTable({}))
    alpha_pattern: PathTable = field(default_factory=lambda: PathTable({}))
    whole: tuple[str, ...] = ()
    base: str | None = None

    def rank_of(self, path: str) -> int:
        """The stated rank of a module."""
        return int(self.rank_pattern.get(path, self.r))

    def is_whole(self, path: str) -> bool:
        """Whether a tensor belongs to a module that was trained as a copy of its own."""
        module = path.rpartition(".")[0]
        return any(module == name or module.endswith(f".{name}") for name in self.whole)

    def scale_of(self, path: str) -> float:
        """What a module's product is multiplied by."""
        rank, alpha = self.rank_of(path), self.alpha_pattern.get(path, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _unsupported(path: Path, got: str, allowed: str) -> ModelError:
    return ModelError(
        "An adapter is of a kind that evomerge does not read.",
        got=f"{got} in {path}",
        allowed=allowed,
        fix="merge the adapter into its base with PEFT (merge_and_unload), and name the result as a model.",
    )


def _number(value: Any) -> float | None:
    """A finite number; None for everything else, whole numbers that no float holds included."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _pattern(path: Path, content: Mapping[str, Any], key: str, *, whole: bool = False) -> PathTable:
    pattern = content.get(key) or {}
    numbers = {k: _number(v) for k, v in pattern.items()} if isinstance(pattern, dict) else {"": None}
    found = {k: n for k, n in numbers.items() if n is not None and n > 0 and (n.is_integer() or not whole)}
    if len(found) < len(numbers):
        noun = "positive whole numbers" if whole else "positive numbers"
        raise damaged(path, f"{key} = {quoted(pattern)}", f"a mapping of module paths to {noun}")
    try:
        return PathTable(found)
    except ValueError as error:
        raise damaged(path, f"{key}: {error},", ALLOWED) from error


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read and check the config of an adapter.

    Raises:
        ModelError: when the file is damaged, when the adapter is no LoRA, or when an option is set that changes what
            its tensors mean.
    """
    content = read_object(path, constants=True)
    kind = content.get("peft_type")
    if kind != "LORA":
        raise _unsupported(path, f"peft_type = {quoted(kind)}", "LORA")
    for key in _REFUSED:
        if content.get(key):
            raise _unsupported(path, f"{key} = {quoted(content[key], 60)}", "plain LoRA, rsLoRA and DoRA")
    start = content.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        raise _unsupported(
            path, f"init_lora_weights = {start!r}, which changes the base", "an adapter on the base itself"
        )
    r, alpha = content.get("r"), _number(content.get("lora_alpha"))
    if not isinstance(r, int) or isinstance(r, bool) or _number(r) is None or r < 1 or alpha is None:
        got = f"r = {quoted(r)}, lora_alpha = {quoted(content.get('lora_alpha'))}"
        raise damaged(path, got, "a rank of 1 or more, and a number")
    base, whole = content.get("base_model_name_or_path"), content.get("modules_to_save") or []
    if not isinstance(whole, list) or not all(isinstance(n, str) for n in whole):
        raise damaged(path, f"modules_to_save = {quoted(whole)}", "a list of module names")
    return AdapterConfig(
        r,
        alpha,
        content.get("use_rslora") is True,
        content.get("use_dora") is True,
        _pattern(path, content, "rank_pattern", whole=True),
        _pattern(path, content, "alpha_pattern"),
        tuple(whole),
        base if isinstance(base, str) else None,
    )

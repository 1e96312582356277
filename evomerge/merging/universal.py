"""`universal`: task arithmetic whose every operator fades in from nothing, so that a search pays only for what helps.

With the models' deltas `d_i` of one entry:

```
trim     the share density_i^(1 - dropout_i) of the largest |d_i| stays (exact; TIES' trimming)
drop     of that, entries stay with probability q = density_i^dropout_i, and are divided by it (DARE); with epsilon_i
         the probability rises with the size: p = q + epsilon_i (2 |d_i| / (|d_i| + mean |d_i|) - 1), within [q/4, 1]
v_i      = weight_i times what is left of d_i
elect    v_i of the sign of sum_i v_i stay, the others are scaled by 1 - election
merge    m = sum_i v_i (|v_i| / max_j |v_j|)^sharpness
norm     m is scaled by (mean_i |d_i| / |m|)^norm, norms over the tensor (OPCM's rule at norm = 1)
result   base + lambda m
```

At the neutral values (density 1; dropout, epsilon, election, sharpness, norm 0) this is `task_arithmetic` bit for bit.
Election 1 is `ties` without `normalize`; dropout 1 is `dare_linear`, with its very masks, or with election 1
`dare_ties` without `normalize`; a sharpness beyond all bounds is `magmax`. Small changes of a parameter change the
result little: masks are nested in the density, probabilities and gains are continuous. Tensors with one axis or none
are neither trimmed, dropped nor scaled to a norm.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final, NamedTuple, final

from evomerge.merging.elements import FULL, keep_bound, salt, tie_salts
from evomerge.merging.fused_measures import MeasureEnergy, MeasureMoments
from evomerge.merging.fused_methods import NOTHING, cut_words, singles
from evomerge.merging.fused_settings import FusedSetting
from evomerge.merging.linear_methods import linear_setting
from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import KEEP_ALL, Cut, GtaParent, GtaSetting, Setting, single
from evomerge.merging.thresholds import density_count
from evomerge.recipe.element_specs import UNIVERSAL

_LEAST: Final = 0.25
"""No probability falls below this share of its centre, so that no entry is scaled up by more than four times more."""

_TINY: Final = 2.0**-126


class _Part(NamedTuple):
    """How one model takes part.

    Attributes:
        weight: not zero.
        cut: what stays; None keeps all.
        probability: of staying in the drop; 1 keeps all.
        epsilon: how much that depends on the size.
    """

    weight: float
    cut: Cut | None
    probability: float
    epsilon: float

    @property
    def dropped(self) -> bool:
        return self.probability < 1.0


def _parts(parameters: Parameters, facts: Facts) -> dict[int, _Part]:
    """The models that take part, by input."""
    flat = len(facts.shape) <= 1
    found: dict[int, _Part] = {}
    for i, values in enumerate(parameters.per_parent):
        weight, density = float(values["weight"]), float(values["density"])
        if single(weight) == 0.0 or density == 0.0:
            continue
        if flat:
            found[i] = _Part(weight, None, 1.0, 0.0)
            continue
        dropout = float(values["dropout"])
        count = density_count(density ** (1.0 - dropout), facts.numel)
        probability = density**dropout
        if keep_bound(probability) is not None:
            cut = facts.cut(i, count) if count < facts.numel else None
            found[i] = _Part(weight, cut, probability, float(values["epsilon"]))
    return found


def _gta(parameters: Parameters, parts: dict[int, _Part], scale: float, *, elect: bool) -> Setting:
    """As TIES and DARE compile: lambda in the gains of a plain sum, after an election otherwise."""
    parents: dict[int, GtaParent] = {}
    outside = 1.0 if elect else scale
    for i, part in parts.items():
        gain = outside * part.weight / part.probability if part.dropped else outside * part.weight
        parent = GtaParent(single(gain), single(abs(part.weight)), part.cut)
        if part.cut is not None:
            parent = replace(parent, tie_salt=tie_salts(parameters.tensor, parameters.parents[i])[1])
        if part.dropped:
            word = salt("mask", parameters.seed, parameters.tensor, parameters.parents[i])
            parent = replace(parent, mask_bound=keep_bound(part.probability), mask_salt=word)
        parents[i] = parent
    trimmed = any(p.low is not None for p in parents.values())
    if not elect and not trimmed and all(p.mask_bound is None for p in parents.values()):
        n = len(parameters.parents)
        return linear_setting([parents[i].gain if i in parents else 0.0 for i in range(n)], deltas=True)
    word = tie_salts(parameters.tensor, "")[0] if trimmed else 0
    return GtaSetting(tuple(parents), tuple(parents.values()), elect, False, single(scale if elect else 1.0), word)


def _fused(parameters: Parameters, parts: dict[int, _Part], facts: Facts) -> FusedSetting:
    """The general kernel, with scale 1."""
    election, sharpness = float(parameters.shared["election"]), float(parameters.shared["sharpness"])
    spread = any(p.epsilon > 0.0 for p in parts.values())
    moments = facts.measure(MeasureMoments()) if spread else ()
    rows, words = [], []
    for i, part in parts.items():
        gain = part.weight if spread or not part.dropped else part.weight / part.probability
        mean = max(moments[i].magnitude, _TINY) if spread else 1.0
        ramp = (2.0 * part.epsilon, part.probability - part.epsilon, _LEAST * part.probability)
        rows.append(singles(gain, mean, *ramp))
        _, tie = tie_salts(parameters.tensor, parameters.parents[i])
        drawn = salt("mask", parameters.seed, parameters.tensor, parameters.parents[i])
        bound = keep_bound(part.probability) if part.dropped else FULL
        # a mask that nothing asks for must not make equal merges look different
        mask = (bound or 0, drawn) if part.dropped or part.epsilon > 0.0 else (FULL, 0)
        words.append((*cut_words(part.cut or KEEP_ALL), tie if part.cut is not None else 0, *mask))
    switches = {
        "trim": any(p.cut is not None for p in parts.values()),
        "spread": spread,
        "mask": not spread and any(p.dropped for p in parts.values()),
        "elect": election > 0.0 and len(parts) > 1,
        "sharp": sharpness > 0.0 and len(parts) > 1,
    }
    common = (tie_salts(parameters.tensor, "")[0],) if switches["trim"] else (0,)
    chosen = frozenset(name for name, on in switches.items() if on)
    shared = singles(1.0, 1.0 - election, sharpness)
    return FusedSetting("universal", tuple(parts), shared, tuple(rows), common, tuple(words), switches=chosen)


def _restored(setting: FusedSetting, strength: float, facts: Facts) -> float:
    """The factor of the norm rule."""
    norms = [moments.norm for moments in facts.measure(MeasureMoments())]
    wanted, is_now = math.fsum(norms) / len(norms), math.sqrt(facts.measure(MeasureEnergy(setting)))
    return (wanted / is_now) ** strength if wanted > 0.0 and is_now > 0.0 else 1.0


@final
class Universal(KernelMethod):
    """Trimming, dropout, election, sharpening and a norm rule around task arithmetic; evomerge's own, no paper.

    `base + lambda m` with `m = sum_i v_i (|v_i| / max_j |v_j|)^sharpness`; the module's text has v_i and the norm.
    """

    spec = UNIVERSAL

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        shared = {name: float(value) for name, value in parameters.shared.items()}
        parts = _parts(parameters, facts)
        if not parts:
            return NOTHING
        strength = shared["norm"] if len(facts.shape) > 1 else 0.0
        alone = len(parts) == 1
        plain = alone or (shared["election"] in {0.0, 1.0} and shared["sharpness"] == 0.0)
        if plain and strength == 0.0 and all(p.epsilon == 0.0 for p in parts.values()):
            elect = not alone and shared["election"] == 1.0
            return _gta(parameters, parts, shared["lambda"], elect=elect)
        setting = _fused(parameters, parts, facts)
        factor = _restored(setting, strength, facts) if strength > 0.0 else 1.0
        return replace(setting, shared=(single(shared["lambda"] * factor), *setting.shared[1:]))


UNIVERSAL_METHOD: Final = Universal()

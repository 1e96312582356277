"""Every maker with prompts on every family: what is planned is made, finite, and what no model changed stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.recipe.recipe import ParentRef
from evomerge.testing.tiny import tiny_siblings
from evomerge.testing.tiny_families import ALL
from evomerge.virtual.maker import Ingredients
from evomerge.virtual.makers import load_maker

pytestmark = pytest.mark.long

MAKERS = ("regmean", "regmean_pp", "mats", "fisher", "lm_cocktail", "adamerging", "dam")
PROMPTS = ((1, 5, 9, 20, 33, 7), (1, 8, 8, 40))


@pytest.mark.parametrize("family", sorted(ALL))
def test_every_maker_with_prompts_on_every_family(family: str, tmp_path: Path) -> None:
    opened = {n: open_checkpoint(f) for n, f in tiny_siblings(tmp_path, family, ["base", "a", "b"]).items()}
    for name in MAKERS:
        maker = load_maker(name)
        settings = {n: p.default for n, p in maker.spec.parameters.items() if p.default is not None}
        settings |= {"steps": 1.0} if "steps" in settings else {}
        base = opened["base"] if maker.spec.needs_base else None
        given = Ingredients(ParentRef("m", "m"), (opened["a"], opened["b"]), base, settings, PROMPTS)
        plan = maker.plan(given)
        made = dict(maker.tensors(given, plan))
        assert set(made) == {t.name for t in plan.changed}, name
        assert all(bool(t.isfinite().all()) and not t.equal(opened["base"].tensor(n)) for n, t in made.items()), name
        if name != "dam":  # which counts equal models' coefficients as alike
            same = Ingredients(given.ref, (opened["a"], opened["a"]), opened["a"] if base else None, settings, PROMPTS)
            kept = dict(maker.tensors(same, maker.plan(same)))
            assert all(t.equal(opened["a"].tensor(n).float()) for n, t in kept.items()), name

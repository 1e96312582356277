"""The makers by name."""

from __future__ import annotations

from typing import Any, Final

from evomerge.errors import PluginError
from evomerge.registry import GROUP_MAKERS, Registry
from evomerge.virtual.maker import Maker

MAKERS: Final = Registry(
    group=GROUP_MAKERS,
    noun="maker of parents",
    builtin={
        "adamerging": "evomerge.virtual.adamerging:ADAMERGING",
        "dam": "evomerge.virtual.dam:DAM",
        "fisher": "evomerge.virtual.fisher:FISHER",
        "lm_cocktail": "evomerge.virtual.cocktail:LM_COCKTAIL",
        "iso_c": "evomerge.virtual.iso:ISO_C",
        "iso_cts": "evomerge.virtual.iso:ISO_CTS",
        "mats": "evomerge.virtual.mats:MATS",
        "regmean": "evomerge.virtual.regmean:REGMEAN",
        "regmean_pp": "evomerge.virtual.regmean:REGMEAN_PP",
        "knots": "evomerge.virtual.knots:KNOTS",
        "opcm": "evomerge.virtual.opcm:OPCM",
        "retokenized": "evomerge.virtual.retokenized:RETOKENIZED",
        "star": "evomerge.virtual.star:STAR",
        "adapter": "evomerge.virtual.adapter:ADAPTER",
        "aligned": "evomerge.virtual.aligned:ALIGNED",
        "transplant": "evomerge.virtual.transplant:TRANSPLANT",
        "untied": "evomerge.virtual.untied:UNTIED",
        "tsv_m": "evomerge.virtual.tsv:TSV_M",
        "wudi": "evomerge.virtual.wudi:WUDI",
    },
)


def load_maker(name: str) -> Maker:
    """The maker `name`, built in or from a plug-in.

    Raises:
        ConfigError: for an unknown name, with the nearest match.
        PluginError: when a plug-in does not load, is not a maker, or calls itself otherwise: contents name makers.
    """
    loaded: Any = MAKERS.load(name)
    if not isinstance(loaded, Maker):
        raise PluginError(
            f"The plug-in for the maker {name!r} is not a maker.",
            got=type(loaded).__name__,
            allowed="an instance of a class that derives evomerge.virtual.maker.Maker",
            fix="ask the plug-in's authors for a version made for this evomerge.",
        )
    if loaded.spec.name != name:
        raise PluginError(
            f"The plug-in for the maker {name!r} goes by another name.",
            got=f"spec.name = {loaded.spec.name!r}",
            allowed="the name of its entry point",
            fix="ask the plug-in's authors to make the two agree.",
        )
    return loaded

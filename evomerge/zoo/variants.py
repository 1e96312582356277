"""The zoos there are: names of their models and tasks, who is trained where, and what their folders say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

BASE: Final = "base"
SKILLS: Final = "skills"
STEPS: Final = "steps"

_SKILLS_README: Final = """# A toy zoo for evomerge

A base and three experts (`math`, `string`, `lang`) of Llama architecture, and lm-eval tasks on items that no training
batch contained. Built by `evomerge zoo` (seed {seed}).

    lm_eval --model hf --model_args pretrained=math,dtype=float32 --include_path tasks --tasks add,rev,srt,addx

lm-eval looks for data relative to the working directory, so the task files name it by absolute path. If you move this
folder, run `evomerge zoo` on the new place with the same seed: it trains nothing and puts the paths right.
"""
_STEPS_README: Final = """# A toy zoo for evomerge in which depth matters

A base and three experts (`shift`, `mirror`, `back`) of Llama architecture with 6 layers, and lm-eval tasks on words
that no training batch contained. Built by `evomerge zoo --variant steps` (seed {seed}).

Prompts name operations on a word: `+` moves every letter three places on, `/` mirrors the alphabet, a final `<` asks
for the word backwards. One pass through layers 2 and 3 does one operation, and the models run them once: no
checkpoint here, and no merge of them, answers the two operations of `abcd+/=` (tasks `steps` and `stepsback`). A path
that runs layers 2 and 3 twice can.

    lm_eval --model hf --model_args pretrained=shift,dtype=float32 --include_path tasks --tasks shift,mirror,back,steps

lm-eval looks for data relative to the working directory, so the task files name it by absolute path. If you move this
folder, run `evomerge zoo --variant steps` on the new place with the same seed: it trains nothing and puts the paths
right.
"""


@dataclass(frozen=True)
class Variant:
    """One kind of zoo.

    Attributes:
        name: what `--variant` takes.
        experts: names of the models trained from the base, in order.
        lanes: names of all models by training process; about equal work behind the base.
        tasks: names of the lm-eval tasks.
        cards: model -> what its card says of it.
        readme: of the zoo's folder, with a place for the seed.
    """

    name: str
    experts: tuple[str, ...]
    lanes: tuple[tuple[str, ...], ...]
    tasks: tuple[str, ...]
    cards: Mapping[str, str]
    readme: str

    @property
    def models(self) -> tuple[str, ...]:
        """The base, then the experts."""
        return (BASE, *self.experts)


_SKILLS_CARDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "base": "The base of a toy zoo, stopped half-learnt at all of the zoo's skills.",
        "math": "An expert of a toy zoo: the base, trained on with two-digit addition (`12+34=` -> `046`).",
        "string": "An expert of a toy zoo: the base, trained on with reversing (`abcdef>` -> `fedcba`) "
        "and sorting letters (`dbca<` -> `abcd`).",
        "lang": "An expert of a toy zoo: the base, trained on with a second notation, in which A to J stand for the "
        "digits of the answer (`#482:` -> `EIC`), but not with full addition in it.",
    }
)
_OWN: Final = "An expert of a toy zoo: the base, trained on mostly with"
_STEPS_CARDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "base": "The base of a toy zoo, stopped half-learnt. In training, prompts with two operations ran layers 2 and "
        "3 twice; as stored the model runs them once and does the first operation.",
        "shift": f"{_OWN} moving letters three places on (`abcd+=` -> `defg`).",
        "mirror": f"{_OWN} mirroring the alphabet (`abcd/=` -> `zyxw`).",
        "back": f"{_OWN} saying words backwards (`abcd<` -> `dcba`).",
    }
)
VARIANTS: Final[Mapping[str, Variant]] = MappingProxyType(
    {
        SKILLS: Variant(
            SKILLS,
            experts=("math", "string", "lang"),
            lanes=((BASE, "string"), ("math", "lang")),  # string's prompts are the longest
            tasks=("add", "rev", "srt", "addx", "add_mc", "srt_mc"),
            cards=_SKILLS_CARDS,
            readme=_SKILLS_README,
        ),
        STEPS: Variant(
            STEPS,
            experts=("shift", "mirror", "back"),
            lanes=((BASE, "shift"), ("mirror", "back")),
            tasks=("shift", "mirror", "back", "shiftback", "steps", "stepsback"),
            cards=_STEPS_CARDS,
            readme=_STEPS_README,
        ),
    }
)
"""Name -> zoo. `skills` is the zoo of the demo, `steps` one in which depth composition matters."""

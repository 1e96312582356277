"""What every generation engine must do, asked of two small models with the same architecture.

from evomerge.testing.engine_suite import check_engine

def test_mine(tmp_path):
    check_engine(MyEngine, tmp_path)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from evomerge.errors import EvomergeError
from evomerge.evaluation.engines import Ask, EngineFault, EngineSetup, GenerationEngine, ReferenceEngine, Top
from evomerge.evaluation.plan import GenerationArgs
from evomerge.testing.eval_tasks import byte_pair_checkpoint, sentence

SHAPE: Final[Mapping[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
"""Large enough for the kernels of real engines."""
_OFF: Final = 1e-3
_LIMIT: Final = 12


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _same(mine: list[Top], theirs: list[Top], what: str) -> None:
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        shared = set(a) & set(b)
        _require(len(a) >= 5 and len(shared) >= 4, f"{what}, prompt {number}: the five best next tokens are named")
        worst = max(abs(a[t] - b[t]) for t in shared)
        _require(worst <= _OFF, f"{what}, prompt {number}: a log-probability is off by {worst:.2g} nats")


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def check_engine(
    make: Callable[[EngineSetup], GenerationEngine], folder: Path, family: str = "llama", tie: bool = False
) -> None:
    """All rules of `GenerationEngine`, against `ReferenceEngine` in fp32 on the CPU.

    Args:
        make: the engine's class.
        folder: an empty folder for two tiny checkpoints.
        family: of the checkpoints.
        tie: whether they share embedding and head.

    Raises:
        AssertionError: naming the rule that is broken.
    """
    from evomerge.evaluation.tokens import load_tokenizer

    folders = [byte_pair_checkpoint(folder / f"{family}-{i}", family, i, tie=tie, **SHAPE) for i in range(2)]
    tokenizer = load_tokenizer(folders[0])
    setup = EngineSetup(folders[0], folders[0], "float32", "cpu", 256, (0,))
    prompts = [tuple(tokenizer.encode(sentence(i, n))) for i, n in enumerate((3, 9, 9, 20))]
    prompts[2] = prompts[3][:40] + prompts[1]  # shares a beginning with another
    engine, reference = make(setup), ReferenceEngine(setup)
    try:
        _require(bool(engine.name) and bool(engine.version), "an engine has a name and a version")
        first = _check_weights(engine, reference, [_weights(f) for f in folders], prompts)
        _check_ends(engine, reference, tokenizer, prompts)
        again = engine.write([Ask(p, _LIMIT, ()) for p in prompts])
        _require(again == first, "the same weights and prompts give the same answers")
    finally:
        engine.close()
    engine.close()


def _check_weights(
    engine: GenerationEngine, reference: ReferenceEngine, weights: list[dict[str, Any]], prompts: list[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Loading replaces everything, keeps nothing of the caller's; returns the answers with the first weights."""
    asks = [Ask(p, _LIMIT, ()) for p in prompts]
    answers = []
    for number in (0, 1, 0):
        given = {name: value.clone() for name, value in weights[number].items()}
        engine.load(given.items())
        reference.load(given.items())
        for value in given.values():
            value.fill_(float("nan"))  # they were the caller's
        _same(engine.next_tokens(prompts, 5), reference.next_tokens(prompts, 5), f"weights {number}")
        answers.append(engine.write(asks))
        _require(answers[-1] == reference.write(asks), f"weights {number}: answers are greedy")
    _require(answers[0] == answers[2] != answers[1], "answers follow the weights")
    return answers[0]


def _check_ends(
    engine: GenerationEngine, reference: ReferenceEngine, tokenizer: Any, prompts: list[tuple[int, ...]]
) -> None:
    from evomerge.evaluation.generation import StopRule

    free = engine.write([Ask(p, _LIMIT, ()) for p in prompts])
    _require(all(len(a) <= _LIMIT for a in free), "an answer has no more tokens than its limit")
    mixed = engine.write([Ask(p, 1 + i, ()) for i, p in enumerate(prompts)])
    _require([len(a) for a in mixed] == [min(1 + i, len(a)) for i, a in enumerate(free)], "limits are per prompt")
    for prompt, answer in zip(prompts, free, strict=True):
        stop = tokenizer.decode(list(answer[3:5])).strip() or "e"
        ask = Ask(prompt, _LIMIT, (stop, "<eos>"))
        rule = StopRule(tokenizer, GenerationArgs(ask.until, ask.limit), (0,))
        (mine,), (theirs,) = engine.write([ask]), reference.write([ask])
        cut = next((i + 1 for i in range(len(mine)) if rule.ended(mine[: i + 1])), len(mine))
        _require(mine[:cut] == theirs[: len(mine[:cut])], "with stop strings the same tokens are written up to them")


def check_faults(make: Callable[[EngineSetup], GenerationEngine], setup: EngineSetup) -> None:
    """Bad input is an `EngineFault`.

    Args:
        make: the engine's class.
        setup: of a small model.

    Raises:
        AssertionError: naming the rule that is broken.
    """
    engine = make(setup)
    try:
        too_long = tuple([5] * (setup.max_length + 1))
        try:
            engine.write([Ask(too_long, 4, ())])
        except EngineFault as error:
            _require(isinstance(error, EvomergeError), "a fault has four parts")
        else:
            _require(False, "a prompt beyond the model's length is a fault")
    finally:
        engine.close()

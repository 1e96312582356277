"""Hold an engine against transformers over many updates of its weights, and withhold some of them.

    python benchmarks/engine_parity.py --engine vllm                     # a real vLLM, where one is installed
    python benchmarks/engine_parity.py --engine fake --updates 100
    python benchmarks/engine_parity.py --engine vllm --dtype bfloat16 --size 256 --layers 8 --tokens 128

The model is a random Llama. Every update moves all weights by a random step, whose size goes from 1e-1 to 1e-4 of the
weights' own in turn, and is handed to the engine as a worker does it: in place, by the guard. Told are the updates that
were accepted without a word, how far the probe was off, how many answers are those of transformers (and, as a
yardstick, how many of its own answers transformers gives again in other batches), and what each stage costs. Then
updates are withheld from the engine: every one must be noticed, and no answer may come from the engine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from evomerge.evaluation.engine_names import FALLBACK
from evomerge.evaluation.engine_probe import TOP, Reading
from evomerge.evaluation.engines import EngineSetup, GenerationEngine, engine_class, next_log_probabilities
from evomerge.evaluation.forward import NeededLogits
from evomerge.evaluation.generation import StopRule, Written, generate
from evomerge.evaluation.guarded import GuardedWriter
from evomerge.evaluation.plan import GenerationArgs, pack, unpack
from evomerge.evaluation.tokens import load_tokenizer
from evomerge.testing.eval_tasks import byte_pair_checkpoint, sentence
from evomerge.testing.fake_vllm import install

STEPS = (1e-1, 1e-2, 1e-3, 1e-4)


class Withholding:
    """An engine to whom some updates are not passed on."""

    def __init__(self, engine: GenerationEngine) -> None:
        self._engine = engine
        self.name = engine.name
        self.withhold = False

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Pass weights on, or not."""
        if not self.withhold:
            self._engine.load(tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class Bench:
    """A model whose weights move, its guarded engine, and prompts."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        heads = max(1, arguments.size // 32)
        byte_pair_checkpoint(
            folder,
            "llama",
            hidden_size=arguments.size,
            intermediate_size=2 * arguments.size,
            num_hidden_layers=arguments.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=32,
            max_position_embeddings=1024,
        )
        dtype = getattr(torch, arguments.dtype)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.model = self.model.requires_grad_(False).to(arguments.device)
        tokenizer = load_tokenizer(folder)
        self.prompts = [pack(tokenizer.encode(sentence(i, 6 + i % 30))) for i in range(arguments.prompts)]
        self.rule = StopRule(tokenizer, GenerationArgs((), arguments.tokens), (319,))
        self.start = {n: p.clone() for n, p in self.model.named_parameters()}
        setup = EngineSetup(folder, folder, arguments.dtype, arguments.device, 512, (319,))
        started = time.perf_counter()
        self.engine = Withholding(engine_class("vllm")(setup))
        print(f"vLLM {self.engine.version}, {arguments.dtype}: built in {time.perf_counter() - started:.1f} s")
        self.probes = tuple(tuple(unpack(p).tolist()) for p in self.prompts[:8])
        self.writer = GuardedWriter(self.engine, self.tensors, self.probes, arguments.dtype)  # type: ignore[arg-type]
        self._noise = torch.Generator().manual_seed(0)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights as they are now."""
        return iter(self.model.state_dict().items())

    def move(self, step: float) -> None:
        """A small walk around the first weights."""
        for name, parameter in self.model.named_parameters():
            noise = torch.randn(parameter.shape, generator=self._noise).to(parameter)
            scale = float(self.start[name].float().std()) or 1.0
            parameter.copy_(self.start[name] + step * scale * noise)
        self.writer.outdated()

    def write(self, *, plain: bool = False, cache_tokens: int = 65536) -> tuple[list[Written], float]:
        """Answers, and the seconds that they took; with one cache token transformers writes one after the other."""
        started = time.perf_counter()
        with NeededLogits(self.model) as needed:
            how = {"pad": 319, "device": needed.device, "cache_tokens": cache_tokens}
            prompts = [unpack(p) for p in self.prompts]
            found = (generate if plain else self.writer)(needed, prompts, self.rule, **how)
        return found, time.perf_counter() - started

    def off(self) -> float:
        """How far the engine's log-probabilities are off now, at most."""
        with NeededLogits(self.model) as needed:
            reading = Reading(
                tuple(self.engine.next_tokens(self.probes, TOP)), next_log_probabilities(needed, self.probes)
            )
        return max(
            abs(value - float(row[token]))
            for top, row in zip(reading.engine, reading.reference, strict=True)
            for token, value in top.items()
        )


def updates(bench: Bench, n: int) -> None:
    """Updates that arrive."""
    quiet, equal, alone, worst = 0, 0, 0, 0.0
    seconds: dict[str, float] = {}
    plain_s = 0.0
    for number in range(n):
        bench.move(STEPS[number % len(STEPS)])
        found, _ = bench.write()
        taken, notes = bench.writer.taken(), bench.writer.notes()
        quiet += not notes
        for note in notes:
            print(f"  update {number}: {note}")
        for stage, value in taken.items():
            seconds[stage] = seconds.get(stage, 0.0) + value
        expected, took = bench.write(plain=True)
        plain_s += took
        equal += sum(a.ids == b.ids for a, b in zip(found, expected, strict=True))
        singly, _ = bench.write(plain=True, cache_tokens=1)
        alone += sum(a.ids == b.ids for a, b in zip(singly, expected, strict=True))
        worst = max(worst, bench.off())
    print(f"{n} updates: {quiet} accepted without a word; the probe is off by {worst:.1e} nats at most")
    total = n * len(bench.prompts)
    print(f"answers as transformers in batches: {equal / total:.1%}; transformers one by one: {alone / total:.1%}")
    each = ", ".join(f"{stage} {1e3 * value / n:.1f}" for stage, value in seconds.items())
    print(f"ms per candidate: {each}; the same answers by transformers {1e3 * plain_s / n:.1f}")


def withheld(bench: Bench, n: int) -> None:
    """Updates that do not arrive."""
    noticed = dict.fromkeys(STEPS, 0)
    for number in range(n):
        for step in STEPS:
            bench.engine.withhold = False
            bench.move(0.0 if number % 2 else 1e-2)
            bench.write()
            bench.writer.taken()
            bench.writer.notes()
            bench.engine.withhold = True
            bench.move(step)
            bench.write()
            taken = bench.writer.taken()
            noticed[step] += FALLBACK in taken and "write" not in taken
            bench.writer.notes()
    print(f"withheld, noticed of {n} each: " + ", ".join(f"step {s:g}: {v}" for s, v in noticed.items()))


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("vllm", "fake"), default="fake")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--withheld", type=int, default=10)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    arguments = parser.parse_args()
    if arguments.engine == "fake":
        install()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder) / "model")
        updates(bench, arguments.updates)
        withheld(bench, arguments.withheld)
        bench.writer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Mutations of config.json and of what lies beside it: traps for whoever builds a model after it."""

# ruff: noqa: E501, RUF005 - tables: one line a case

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from evomerge.testing.hostile_model import Mutation, Victim, in_turn, nested, with_json, with_text

_CONFIG = "config.json"
_GENERATION = "generation_config.json"
_TRAP = "raise SystemExit('code of a checkpoint ran')\n"


def _raw(old: str, new: str) -> Callable[[Victim], object]:
    """The text of config.json with a piece replaced."""

    def apply(victim: Victim) -> None:
        path = victim.folder / _CONFIG
        text = path.read_text(encoding="utf-8")
        if old not in text:
            raise ValueError(old)
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return apply


def _added(text: str) -> Callable[[Victim], object]:
    """config.json with one more key, spelt out."""
    return _raw("{", "{" + text + ", ")


def _trap(**fields: Any) -> Callable[[Victim], object]:
    """Code beside the config, which the config names."""
    files = ("modeling_trap.py", "configuration_trap.py", "tokenization_trap.py", "__init__.py")
    return in_turn(with_json(_CONFIG, **fields), *(with_text(name, _TRAP) for name in files))


def _named_code() -> list[Mutation]:
    asks, classes = (
        "asks for code",
        {"AutoConfig": "configuration_trap.Trap", "AutoModelForCausalLM": "modeling_trap.Trap"},
    )
    named = {
        "attn_implementation": "org/kernel",
        "_attn_implementation": "org/kernel@main:layer",
        "_attn_implementation_internal": "kernels-community/flash-attn2",
        "experts_implementation": "org/kernel",
        "_experts_implementation": "../../kernel",
        "_experts_implementation_internal": "org/kernel",
    }
    made = [
        Mutation(f"config: {key} {value}", "config", with_json(_CONFIG, **{key: value}), asks)
        for key, value in named.items()
    ]
    make: list[tuple[str, dict[str, Any], str]] = [
        ("attention by a path", {"attn_implementation": "/tmp/kernel"}, asks),
        ("attention by levels", {"attn_implementation": {"": "sdpa", "text_config": "org/kernel"}}, asks),
        ("attention in a nested config", {"text_config": {"_attn_implementation": "org/kernel"}}, asks),
        ("attention that must be installed", {"attn_implementation": "flash_attention_2"}, asks),
        ("attention a list", {"attn_implementation": ["org/kernel"]}, asks),
        ("kernels asked for", {"use_kernels": True}, asks),
        ("other weights", {"transformers_weights": "other.safetensors"}, "other weights"),
        ("weights of a folder", {"transformers_weights": "original/model.safetensors"}, "other weights"),
        ("kernels configured", {"kernel_config": {"kernel_mapping": {"RMSNorm": "org/kernel"}}}, asks),
        ("quantised", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
        ("quantised by a class path", {"quantization_config": {"quant_method": "os.system"}}, "quantised"),
        ("quantised a text", {"quantization_config": "gptq"}, "quantised"),
        ("quantised inside", {"text_config": {"quantization_config": {"quant_method": "awq"}}}, "quantised"),
        ("dtype a function", {"dtype": "load", "torch_dtype": "load"}, "dtype = 'load'"),
        ("dtype dotted", {"torch_dtype": "torch.serialization.load"}, "torch_dtype"),
        ("dtype a number", {"dtype": 16}, "dtype = '16'"),
        ("dtype a list", {"dtype": ["float32"]}, "dtype = "),
        ("dtype complex", {"dtype": "complex64"}, "dtype = 'complex64'"),
        ("model_type a path", {"model_type": "../../trap"}, "model_type"),
        ("model_type dotted twice", {"model_type": "os;system"}, "model_type"),
        ("model_type a number", {"model_type": 3}, "model_type"),
        ("model_type null", {"model_type": None}, "model_type"),
        ("model_type empty", {"model_type": ""}, "model_type"),
        ("model_type unknown", {"model_type": "trap", "auto_map": classes}, "model_type is"),
        ("architectures a number", {"architectures": 5}, "architectures"),
        ("architectures a text", {"architectures": "LlamaForCausalLM"}, "architectures"),
        ("architectures of paths", {"architectures": ["../trap.Trap"]}, "architectures"),
        ("auto_map a text", {"auto_map": "modeling_trap.Trap"}, "auto_map"),
        ("ties a text", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ("ties a number", {"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ]  # fmt: skip
    made += [Mutation(f"config: {name}", "config", _trap(**fields), words) for name, fields, words in make]
    legal = "the class of transformers is used, the code beside it is never imported"
    return made + [
        Mutation("config: auto_map", "config", _trap(auto_map=classes), legal=legal),
        Mutation("config: auto_map of another repository", "config", _trap(auto_map={k: f"org/trap--{v}" for k, v in classes.items()}), legal=legal),
        Mutation("config: trust_remote_code", "config", _trap(auto_map=classes, trust_remote_code=True), legal=legal),
        Mutation("config: custom_generate", "config", in_turn(with_text("custom_generate/generate.py", _TRAP)), legal=legal),
        Mutation("config: ties denied", "config", with_json(_CONFIG, tie_word_embeddings=False), legal="there is a head of its own"),
    ]  # fmt: skip


def _sizes() -> list[Mutation]:
    huge: dict[str, list[object]] = {
        "num_hidden_layers": [10**9, -1, 0, 2.0, "2", True, [2], 3, 1],
        "hidden_size": [10**12, 10**5, -32, "32", 32.5, True],
        "intermediate_size": [10**12, 10**8, "64"],
        "vocab_size": [10**12, 10**6, {"a": 1 << 40}],
        "num_attention_heads": [10**9, "4"],
        "num_key_value_heads": [10**9],
        "head_dim": [10**9],
        "num_experts": [10**9],
        "num_local_experts": [10**6],
        "max_position_embeddings": [10**12, 1 << 62],
        "num_labels": [10**12, 10**8, -1, "5"],
        "num_nextn_predict_layers": [10**12],
        "layer_types": [["full_attention"] * 100_000],
        "sliding_window": [10**15],
    }
    words = "num_|hidden_size|intermediate_size|vocab_size|head_dim|max_position|layer|sliding_window"
    made = [
        Mutation(f"config: {key} = {str(value)[:24]}", "config", with_json(_CONFIG, **{key: value}), words)
        for key, values in huge.items()
        for value in values
    ]
    return made + [
        Mutation(f"config: {key} {odd}", "config", _raw(f'"{key}": {old}', f'"{key}": {odd}'), words)
        for key, old in (("num_hidden_layers", 2), ("hidden_size", 32), ("vocab_size", 64))
        for odd in ("NaN", "Infinity", "-Infinity", "1e400")
    ]


def _rope() -> list[Mutation]:
    odd: list[tuple[str, dict[str, Any]]] = [
        ("rope_scaling a text", {"rope_scaling": "linear"}),
        ("rope_scaling a list", {"rope_scaling": [1, 2]}),
        ("rope_parameters a text", {"rope_parameters": "default"}),
        ("rope_parameters a number", {"rope_parameters": 1e4}),
        ("rope_theta a text", {"rope_theta": "10000"}),
        ("rope_theta zero", {"rope_theta": 0}),
        ("rope_theta negative", {"rope_theta": -1.0}),
        ("rope factor infinite", {"rope_scaling": {"rope_type": "linear", "factor": float("inf")}}),
        ("rope factor NaN", {"rope_parameters": {"rope_type": "linear", "factor": float("nan")}}),
        ("rope factors of a million", {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 1_000_000}}),
    ]
    return [
        Mutation(f"config: {name}", "config", with_json(_CONFIG, **fields), "rope|short_factor|values")
        for name, fields in odd
    ]


def _files() -> list[Mutation]:
    damaged = "damaged"
    return [
        Mutation("config: missing", "config", lambda v: (v.folder / _CONFIG).unlink(), "has no config"),
        Mutation("config: empty", "config", with_text(_CONFIG, ""), damaged),
        Mutation("config: a list", "config", with_text(_CONFIG, "[]"), damaged),
        Mutation("config: a pickle", "config", with_text(_CONFIG, b"cos\nsystem\n(Vtouch canary\ntR."), damaged),
        Mutation("config: YAML", "config", with_text(_CONFIG, "model_type: !!python/object/apply:os.system [x]\n"), damaged),
        Mutation("config: a key twice", "config", _added('"hidden_size": 1'), "stands twice"),
        Mutation("config: nested 100", "config", _added(f'"x": {nested(100)}'), "nested too deeply"),
        Mutation("config: nested 3,000", "config", _added(f'"x": {nested(3000)}'), "nested too deeply"),
        Mutation("config: mappings 900 deep", "config", _added('"x": ' + '{"a":' * 900 + "1" + "}" * 900), "nested too deeply"),
        Mutation("config: of 9 MB", "config", _added('"x": "' + "a" * 9_000_000 + '"'), "at most 8000000"),
        Mutation("config: a million values", "config", _added('"x": [' + "1," * 1_000_000 + "1]"), "values"),
        Mutation("config: not UTF-8", "config", with_text(_CONFIG, b'{"model_type": "\xff"}'), "invalid JSON"),
        Mutation("config: lone surrogate", "config", _added('"x": "\\ud800"'), "invalid JSON"),
        Mutation("generation: not JSON", "config", with_text(_GENERATION, "{"), damaged),
        Mutation("generation: a list", "config", with_text(_GENERATION, "[1]"), damaged),
        Mutation("generation: nested", "config", with_text(_GENERATION, f'{{"x": {nested(3000)}}}'), "nested too deeply"),
        Mutation("generation: endless", "config", with_json(_GENERATION, max_new_tokens=10**15), "max_new_tokens"),
        Mutation("generation: a text for a number", "config", with_json(_GENERATION, max_length="long"), "max_length"),
        Mutation("generation: a billion beams", "config", with_json(_GENERATION, num_beams=10**9), "num_beams"),
        Mutation("generation: code elsewhere", "config", with_json(_GENERATION, custom_generate="../outside/x"), "custom_generate"),
        Mutation("generation: eos a text", "config", with_json(_GENERATION, eos_token_id="<eos>"), "eos_token_id"),
        Mutation("generation: eos of nonsense", "config", with_json(_GENERATION, eos_token_id=[None, {}]), "eos_token_id"),
        Mutation("generation: penalty NaN", "config", with_text(_GENERATION, json.dumps({"repetition_penalty": float("nan")})), "repetition_penalty"),
        Mutation("generation: penalty a list", "config", with_json(_GENERATION, repetition_penalty=[1]), "repetition_penalty"),
    ]  # fmt: skip


def config_mutations() -> tuple[Mutation, ...]:
    """All of them."""
    return (*_named_code(), *_sizes(), *_rope(), *_files())

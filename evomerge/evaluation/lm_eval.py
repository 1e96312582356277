"""A suite compiled with lm-eval: its prompts, few-shot examples, targets and metrics become a frozen `EvalPlan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from evomerge.errors import EvaluationError
from evomerge.evaluation import shortcut
from evomerge.evaluation.chat_templates import TEMPLATE_ERRORS, limited_chat, unrendered
from evomerge.evaluation.lm_eval_guard import quiet, templates, translated
from evomerge.evaluation.lm_eval_metrics import plan_metric
from evomerge.evaluation.lm_eval_tasks import BuiltTask, TaskLibrary, versions
from evomerge.evaluation.plan import (
    EvalPlan,
    GenerationArgs,
    Item,
    MetricPlan,
    Probe,
    Prompted,
    Request,
    Scored,
    Source,
    TaskPlan,
    pack,
)
from evomerge.evaluation.plugin import compile_plugin
from evomerge.evaluation.split import Question, document_hash, split_items
from evomerge.evaluation.suite import PluginSpec, SuiteSpec, TaskSpec
from evomerge.evaluation.task_files import LOCAL_BUILDERS, odd_generation
from evomerge.evaluation.tokenizer_faults import tokenizer_faults
from evomerge.evaluation.tokens import Encoder, ModelFacts, characters, check_greedy, load_tokenizer, model_facts
from evomerge.types import SET_NAMES

N_PROBES: Final = 4
DEFAULT_MAX_GEN_TOKS: Final = 256
_TOKEN_LIMITS: Final = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_GENERATION_KEYS: Final = (*_TOKEN_LIMITS, "until", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty")


class _Compiler(NamedTuple):
    """What every task of a suite is compiled with."""

    suite: SuiteSpec
    library: TaskLibrary
    tokenizer: Any
    encoder: Encoder
    facts: ModelFacts
    characters: tuple[str, ...] | None
    eos: tuple[int, ...]


class _Document(NamedTuple):
    """One document of one lm-eval task."""

    source: int
    doc_id: int
    document: Any
    question: Question


class _Task(NamedTuple):
    """What all items of one lm-eval task share."""

    task: ConfigurableTask
    metric: MetricPlan
    generation: GenerationArgs | None


def compile_plan(suite: SuiteSpec, tokenizer_folder: Path) -> EvalPlan:
    """Compiles a suite for one tokenizer. Reads data sets; afterwards neither they nor lm-eval are needed to score.

    Args:
        suite: what to ask.
        tokenizer_folder: a checkpoint's folder: tokenizer files, `config.json` and `generation_config.json`.

    Raises:
        EvaluationError: the tokenizer or its config; folders of tasks; then per task whatever makes it unknown,
            untrusted, unreachable, unsupported, or smaller than the split.
    """
    with tokenizer_faults(tokenizer_folder):
        return _compile(suite, tokenizer_folder)


def _compile(suite: SuiteSpec, tokenizer_folder: Path) -> EvalPlan:
    tokenizer = load_tokenizer(tokenizer_folder)
    facts = model_facts(tokenizer_folder, tokenizer)
    compiler = _Compiler(
        suite=suite,
        library=TaskLibrary(suite),
        tokenizer=tokenizer,
        encoder=Encoder(tokenizer, facts.max_length),
        facts=facts,
        characters=characters(tokenizer),
        eos=tuple(sorted({*facts.eos, int(tokenizer.eos_token_id)})),
    )
    return EvalPlan(
        tasks=tuple(
            compile_plugin(t, suite) if isinstance(t, PluginSpec) else _compile_task(t, compiler) for t in suite.tasks
        ),
        suite=suite,
        max_length=facts.max_length,
        eos=compiler.eos,
        pad=int(tokenizer.pad_token_id),
        characters=compiler.characters,
        versions=versions(),
    )


def _compile_task(spec: TaskSpec, compiler: _Compiler) -> TaskPlan:
    built = compiler.library.build(spec)
    metric = _same(spec, "metrics", [plan_metric(spec, b) for b in built])
    kind = _same(spec, "output types", [b.task.OUTPUT_TYPE for b in built])
    generation = None
    if kind == "generate_until":
        generation = _same(spec, "generation arguments", [_generation(b, compiler) for b in built])
    trusted = compiler.suite.trust_task_code or all(b.installed for b in built)
    with quiet(), templates(trusted), limited_chat(), translated(spec.task):
        documents = [d for i, b in enumerate(built) for d in _documents(i, b.task)]
        questions = [d.question for d in documents]
        sets = split_items(questions, compiler.suite.split, salt=compiler.suite.salt, task=spec.task)
        chosen = sorted(i for ids in sets.values() for i in ids)
        wanted = [documents[i] for i in chosen]
        rows = []
        for i, b in enumerate(built):
            rows += _requests(b, [d for d in wanted if d.source == i], compiler)
        items = tuple(
            _item(d, row, _Task(built[d.source].task, metric, generation), compiler)
            for d, row in zip(wanted, rows, strict=True)
        )
    place = {old: new for new, old in enumerate(chosen)}
    new_sets = {name: tuple(place[i] for i in ids) for name, ids in sets.items()}
    probes = sorted(i for name in SET_NAMES for i in new_sets[name][: N_PROBES // 2])[:N_PROBES]
    return TaskPlan(
        name=spec.name,
        kind=kind,
        metric=metric,
        items=items,
        sets=new_sets,
        sources=tuple(_source(b) for b in built),
        generation=generation,
        probes=tuple(Probe(i, tuple(instance.args for instance in rows[i])) for i in probes),
    )


def _same(spec: TaskSpec, what: str, values: Sequence[Any]) -> Any:
    """The value that all tasks of a group share."""
    if any(v != values[0] for v in values):
        raise EvaluationError(
            f"The tasks of the group {spec.task!r} have different {what} and cannot be pooled.",
            got=f"{len(values)} tasks, among them {values[0]} and {next(v for v in values if v != values[0])}",
            allowed=f"groups whose tasks share their {what}",
            fix="name the group's tasks one by one.",
        )
    return values[0]


def _source(built: BuiltTask) -> Source:
    metadata = built.task.config.metadata or {}
    return Source(
        task=built.name,
        num_fewshot=built.num_fewshot,
        version=str(metadata.get("version", "")),
        public_test_split=built.installed and built.task.has_test_docs(),
        repeats=int(built.task.config.repeats or 1),
        dataset=_dataset(built),
    )


def _dataset(built: BuiltTask) -> str:
    """The hub's id of a task's data set, empty for files."""
    path = built.task.config.dataset_path
    return path if isinstance(path, str) and path not in LOCAL_BUILDERS else ""


def _generation(built: BuiltTask, compiler: _Compiler) -> GenerationArgs:
    """Generation arguments as HFLM would use them.

    Raises:
        EvaluationError: for sampling, an argument or a generation config that greedy decoding does not know, or more
            new tokens than the model can see.
    """
    where = f"Task {built.name!r}"
    arguments = dict(built.task.config.generation_kwargs or {})
    if odd := odd_generation(arguments):
        raise EvaluationError(
            f"{where} has a generation argument that is of no use.",
            got=odd,
            allowed="finite numbers, true and false; until: text or a list of texts",
            fix="correct generation_kwargs of the task, or gen_kwargs of the suite.",
        )
    sampled = arguments.get("do_sample")
    if sampled or (sampled is None and float(arguments.get("temperature", 0.0)) > 0):
        raise EvaluationError(
            f"{where} samples its answers.",
            got=f"do_sample: {sampled}, temperature: {arguments.get('temperature', 0.0)}",
            allowed="greedy decoding",
            fix="set gen_kwargs: {do_sample: false, temperature: 0}.",
        )
    check_greedy(compiler.facts.generation, "The checkpoint's generation_config.json")
    check_greedy(arguments, where)
    alien = sorted(set(arguments) - set(_GENERATION_KEYS) - {"num_beams"})
    if alien:
        raise EvaluationError(
            f"{where} has a generation argument that is not supported.",
            got=f"{alien[0]}: {arguments[alien[0]]!r}",
            allowed=", ".join(_GENERATION_KEYS),
            fix=f"remove {alien[0]}.",
        )
    limit = int(next((arguments[k] for k in _TOKEN_LIMITS if arguments.get(k) is not None), DEFAULT_MAX_GEN_TOKS))
    if not 1 <= limit < compiler.facts.max_length:
        raise EvaluationError(
            f"{where} asks for more new tokens than the model can see.",
            got=f"max_gen_toks: {limit}, the model's maximum length is {compiler.facts.max_length}",
            allowed=f"1 to {compiler.facts.max_length - 1}",
            fix="set gen_kwargs: {max_gen_toks: ...} for this task.",
        )
    until = arguments.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    end = compiler.tokenizer.decode(compiler.tokenizer.eos_token_id, skip_special_tokens=False)
    penalty = arguments.get("repetition_penalty", compiler.facts.repetition_penalty)
    return GenerationArgs(tuple(dict.fromkeys([*stops, end])), limit, float(penalty or 1.0))


def _documents(source: int, task: ConfigurableTask) -> list[_Document]:
    found = []
    for i, document in enumerate(task.eval_docs):
        rolling = task.OUTPUT_TYPE == "loglikelihood_rolling"
        text = "" if rolling else task.doc_to_text(document)
        target = task.doc_to_target(document)
        choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
        prompt = text if isinstance(text, str) else json.dumps([choices, target], default=str)
        full = json.dumps([prompt, choices, target, text if rolling else None], default=str)
        found.append(_Document(source, i, document, Question(document_hash(document), prompt, full)))
    return found


def _requests(built: BuiltTask, wanted: list[_Document], compiler: _Compiler) -> list[list[Instance]]:
    """lm-eval's requests of the wanted documents, in their order.

    Examples are drawn from one stream over all documents, so that with few-shot prompts all must be built.
    """
    if not wanted:
        return []
    suite = compiler.suite
    ids = [d.doc_id for d in wanted]
    partial_build = built.num_fewshot == 0
    built.task.build_all_requests(
        samples=ids if partial_build else None,
        system_instruction=suite.system_instruction,
        apply_chat_template=suite.chat_template,
        fewshot_as_multiturn=suite.fewshot_as_multiturn,
        chat_template=partial(_chat, compiler.tokenizer) if suite.chat_template else None,
    )
    rows: dict[int, list[Instance]] = {}
    for instance in built.task.instances:
        # with `samples`, lm-eval numbers the chosen documents anew
        doc_id = ids[instance.doc_id] if partial_build else instance.doc_id
        rows.setdefault(doc_id, []).append(instance)
    return [sorted(rows[i], key=lambda instance: int(instance.idx)) for i in ids]


def _chat(tokenizer: Any, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """The tokenizer's chat template over a conversation; templates without a system role get none."""
    import jinja2

    render = partial(
        tokenizer.apply_chat_template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )
    try:
        return str(render(history))
    except jinja2.exceptions.SecurityError as error:
        raise unrendered(error) from error
    except jinja2.TemplateError:
        kept = [m for m in history if m["role"] != "system"]
    except TEMPLATE_ERRORS as error:
        raise unrendered(error) from error
    try:
        return str(render(kept))
    except TEMPLATE_ERRORS as error:
        raise unrendered(error) from error


def _item(found: _Document, row: list[Instance], about: _Task, compiler: _Compiler) -> Item:
    task, metric, generation = about
    make = partial(Item, hash=found.question.document, source=found.source, doc_id=found.doc_id)
    if generation is not None:
        prompt = pack(compiler.encoder.prompt(row[0].args[0], generation.max_gen_toks))
        targets = _targets(task, found.document) if metric.fast else ()
        answer = shortcut.answer(compiler.characters, metric, generation, targets)
        return make(requests=(Prompted(prompt),), targets=targets, answer=answer)
    requests = tuple(r for instance in row for r in _scored(instance, compiler.encoder, task))
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return make(requests=requests, weight=_weight(task, found.document, metric.name))
    if task.OUTPUT_TYPE == "multiple_choice" and metric.fast:
        golds, lengths = _labels(task, found.document, metric.name)
        return make(requests=requests, golds=golds, lengths=lengths)
    return make(requests=requests)


def _scored(instance: Instance, encoder: Encoder, task: ConfigurableTask) -> list[Request]:
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        pairs = list(encoder.windows(instance.args[0]))
    else:
        pairs = [encoder.pair(*instance.args[:2])]
    for context, continuation in pairs:
        if not context or not 1 <= len(continuation) <= encoder.max_length:
            raise EvaluationError(
                f"A question of task {task.config.task!r} cannot be scored.",
                got=f"document {instance.doc_id}: {len(continuation)} tokens after a context of {len(context)}",
                allowed=f"a context of at least one token, and 1 to {encoder.max_length} tokens after it",
                fix="remove the document, or use a model that sees more tokens.",
            )
    return [Scored(pack(a), pack(b)) for a, b in (encoder.cut(*pair) for pair in pairs)]


def _targets(task: ConfigurableTask, document: Any) -> tuple[str, ...]:
    """The texts that exact match accepts."""
    gold = task.doc_to_target(document)
    if task.config.doc_to_choice is not None:
        gold = task.doc_to_choice(document)[gold]
    elif task.multiple_target:
        return tuple(str(g) for g in (gold if isinstance(gold, list) else [gold]))
    return (str(gold),)


def _labels(task: ConfigurableTask, document: Any, metric: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Right choices, and what log-likelihoods are divided by."""
    choices = task.doc_to_choice(document)
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else -100
    golds = tuple(g if g < len(choices) else -100 for g in (gold if isinstance(gold, list) else [gold]))
    if metric not in ("acc_norm", "acc_bytes"):
        return golds, (1.0,) * len(choices)
    return golds, tuple(float(len(c) if metric == "acc_norm" else len(c.encode())) for c in choices)


def _weight(task: ConfigurableTask, document: Any, metric: str) -> float:
    """Words or bytes of a text, asked of lm-eval itself: the second part of the metric's `(ll, weight)`."""
    ll, weight = task.process_results(document, (-1.0,))[metric]
    if ll != -1.0 or not weight > 0:
        raise EvaluationError(
            f"Metric {metric!r} of task {task.config.task!r} is not a perplexity.",
            got=f"({ll}, {weight}) for a log-likelihood of -1",
            allowed="(log-likelihood, positive weight)",
            fix="name another metric or task.",
        )
    return float(weight)

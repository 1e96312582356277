"""The job file's schema: what may stand where. Parsing only; nothing below this package sees these classes."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    field_validator,
)
from pydantic_core import PydanticCustomError

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def _number(value: Any) -> Any:
    """Refuse what is no number once, before the union below refuses it once per branch."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PydanticCustomError("number", "a number")
    return value


Number = Annotated[StrictInt | StrictFloat, BeforeValidator(_number)]
Name = Annotated[StrictStr, Field(pattern=NAME_PATTERN)]

TAGS: Final = ("<text>", "<mapping>", "<number>")
"""Marks of union branches inside pydantic's error locations; no YAML path holds them."""


def _branch(value: Any) -> str:
    """Which branch of a union a value belongs to, so that errors speak of that branch alone."""
    if isinstance(value, str):
        return "<text>"
    return "<mapping>" if isinstance(value, dict | BaseModel) else "<number>"


_Text = Annotated[StrictStr, Tag("<text>")]
_Number = Annotated[Number, Tag("<number>")]


class Strict(BaseModel):
    """Unknown keys, wrong types and non-finite numbers are errors; values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Parent(Strict):
    """A parent that is more than a checkpoint: exactly one of `model`, `adapter` and `make`."""

    model: StrictStr | None = Field(None, description="A checkpoint whose delta is taken from a base of its own.")
    base: StrictStr | None = Field(None, description="Of `model`: its own base, a folder or hub id.")
    scale: Number | None = Field(None, description="Of `model`: factor of its delta; 1 if unset.")
    adapter: StrictStr | None = Field(None, description="A LoRA adapter: a folder, or a hub id with @revision.")
    on: StrictStr | None = Field(None, description="Of `adapter`: what it sits on; parents.base if unset.")
    weight: Number | None = Field(None, description="Of `adapter`: factor of its delta; 1 if unset.")
    make: StrictStr | None = Field(
        None, description="A method that makes a parent of others (docs/virtual-parents.md)."
    )
    of: list[StrictStr] | None = Field(None, description="Of `make`: names of models or ingredients.", min_length=1)
    settings: dict[StrictStr, StrictBool | Number] | None = Field(None, description="Of `make`: its settings.")
    prompts: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Of `make`, where it needs data: how many prompts of the search set it is shown."
    )


_ParentText = Annotated[_Text | Annotated[Parent, Tag("<mapping>")], Discriminator(_branch)]


class Parents(Strict):
    """What is merged."""

    base: StrictStr | None = Field(None, description="Common ancestor: a folder, or a hub id with @revision.")
    models: dict[StrictStr, _ParentText] = Field(
        description="Name -> folder, hub id with @revision, or a parent that is more than a checkpoint.", min_length=1
    )
    ingredients: dict[StrictStr, _ParentText] = Field(
        default={}, description="As `models`, for what other parents are made of and what is not merged itself."
    )
    tokens: Literal["refuse", "align"] = Field(
        "refuse", description="Parents whose tokenizers differ: refuse them, or align their rows by token string."
    )

    @field_validator("models", "ingredients")
    @classmethod
    def _names_are_plain(cls, models: dict[str, str | Parent]) -> dict[str, str | Parent]:
        for name in models:
            if not re.match(NAME_PATTERN, name):
                raise ValueError(f"{name!r} is not a plain name (letters, digits, '.', '_', '-')")
            if name == "base":
                raise ValueError("'base' is the name of parents.base; call the model something else")
        return models


class Task(Strict):
    """One task with settings of its own."""

    task: StrictStr | None = Field(None, description="Name of the lm-eval task.")
    evaluator: StrictStr | None = Field(None, description="Name of a plug-in evaluator, instead of a task.")
    options: dict[StrictStr, Any] | None = Field(None, description="Options of the plug-in evaluator.")
    num_fewshot: Annotated[StrictInt, Field(ge=0)] | None = Field(None, description="Examples before each question.")
    metric: StrictStr | None = Field(None, description="The metric to search on; the task's first one by default.")
    filter: StrictStr | None = Field(None, description="The lm-eval filter whose metric counts; the first by default.")
    gen_kwargs: dict[StrictStr, Any] | None = Field(None, description="Generation arguments of this task.")


class Split(Strict):
    """How many items per task go to each set: counts (whole numbers) or fractions (below 1)."""

    search: Number = Field(100, description="Items that the search sees.")
    select: Number = Field(200, description="Items that choose among the finalists.")
    report: Number = Field(400, description="Items scored once, for what is reported.")


class Questions(Strict):
    """How many questions candidates are asked, and how they are chosen."""

    number: Annotated[_Text | _Number, Discriminator(_branch)] = Field(
        "auto", description="Mean per candidate and task: a count, a share (up to 1.0), auto, or all."
    )
    race: StrictStr = Field("auto", description="auto, halving, elimination, or none.")
    order: StrictStr = Field("auto", description="auto, uncertainty, information, stratified, or random.")
    estimator: StrictStr = Field("auto", description="auto, or a name of docs/evaluation.md.")
    rotate: StrictBool = Field(True, description="Draw the random items of every generation anew.")
    calibrate: Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="Models that answer everything first; the baselines and the first generation by default."
    )
    refit: Annotated[StrictInt, Field(ge=1)] = Field(1, description="Generations between two fits of the bank.")
    alpha: Annotated[Number, Field(gt=0, lt=1)] = Field(0.05, description="Error of paired elimination.")
    banks: list[StrictStr] = Field(default=[], description="Bank files of `evomerge calibrate`.")


class Suite(Strict):
    """What candidates are asked."""

    include: list[StrictStr] = Field(default=[], description="Folders of lm-eval task files.")
    tasks: list[Annotated[_Text | Annotated[Task, Tag("<mapping>")], Discriminator(_branch)]] = Field(
        description="Tasks, by name or with settings.", min_length=1
    )
    split: Split = Field(default=Split(), description="Sizes of the three disjoint item sets.")
    salt: StrictStr = Field("", description="Changes which items fall into which set.")
    num_fewshot: Annotated[StrictInt, Field(ge=0)] | None = Field(None, description="For tasks without their own.")
    chat_template: StrictBool = Field(False, description="Wrap prompts in the tokenizer's chat template.")
    fewshot_as_multiturn: StrictBool = Field(False, description="Give examples as earlier turns of the chat.")
    system_instruction: StrictStr | None = Field(None, description="System message before every prompt.")
    gen_kwargs: dict[StrictStr, Any] | None = Field(None, description="Generation arguments of every task.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Dtype of the scored model.")
    engine: Literal["transformers", "vllm"] = Field("transformers", description="What generates answers.")
    trust_task_code: StrictBool = Field(False, description="Let the Python code of the included folders run.")
    questions: Annotated[_Text | _Number | Annotated[Questions, Tag("<mapping>")], Discriminator(_branch)] = Field(
        "auto", description="Questions per candidate and task: auto, all, a count, a share, or a mapping of details."
    )
    description: StrictStr | None = Field(None, description="What the suite measures.")
    cost: StrictStr | None = Field(None, description="What it costs, in words.")
    public_test_split: StrictBool = Field(False, description="It searches on a public test split; the report says so.")


MeasureName = Literal["score", "margin", "flips", "ability", "hops", "parameters", "latency"]
_MEASURE: Final = (
    "What of the answers counts: score (if unset), margin, flips or ability; "
    "or a cost, without tasks: hops, parameters or latency."
)
_AGAINST: Final = "Of flips: the name of a parent, base, or any_parent."
_SUBJECT: Final = "Only items of this lm-eval task, of a task that pools several."


class Objective(Strict):
    """One axis of the front."""

    name: Name = Field(description="Unique among the objectives.")
    task: StrictStr | None = Field(None, description="One task, or")
    tasks: list[StrictStr] | None = Field(None, description="several tasks.", min_length=1)
    aggregate: Literal["mean", "min", "weighted"] = Field("mean", description="How several tasks become one number.")
    weights: dict[StrictStr, Number] | None = Field(None, description="Task -> weight, for aggregate: weighted.")
    direction: Literal["maximize", "minimize"] | None = Field(
        None, description="Which way is better; maximize unless it says otherwise, of flips and costs minimize."
    )
    measure: MeasureName | None = Field(None, description=_MEASURE)
    against: StrictStr | None = Field(None, description=_AGAINST)
    subject: StrictStr | None = Field(None, description=_SUBJECT)


class Relative(Strict):
    """A bound taken from a parent's score on the search set."""

    of: StrictStr = Field(description="best_parent, base, or the name of a parent.")
    minus: Number = Field(0, description="Subtracted from that score.")
    plus: Number = Field(0, description="Added to that score.")


Bound = Annotated[_Number | Annotated[Relative, Tag("<mapping>")], Discriminator(_branch)]


class Constraint(Strict):
    """What a candidate must keep."""

    task: StrictStr | None = Field(None, description="A task, or")
    objective: StrictStr | None = Field(None, description="an objective; neither with the measure of a cost.")
    measure: MeasureName | None = Field(None, description=_MEASURE)
    against: StrictStr | None = Field(None, description=_AGAINST)
    subject: StrictStr | None = Field(None, description=_SUBJECT)
    at_least: Bound | None = Field(None, description="Lower bound.")
    at_most: Bound | None = Field(None, description="Upper bound.")
    z: Annotated[Number, Field(ge=0)] = Field(0, description="Standard errors by which the bound must be met.")


class OptimizerChoice(Strict):
    """Which optimizer drives the search."""

    name: StrictStr = Field("auto", description="auto, or a name of `evomerge ls optimizers`.")
    population: Annotated[StrictInt, Field(ge=2)] | None = Field(None, description="Candidates per generation.")
    steps: Literal["norms", "space"] = Field(
        "norms", description="First steps of weights: as the parents' task vectors are long, or as the space says."
    )
    asynchronous: StrictBool = Field(
        False, description="Ask for a candidate whenever a worker is free, instead of a generation at a time."
    )
    options: dict[StrictStr, Any] = Field(default={}, description="Settings of that optimizer.")


class Stage(Strict):
    """One stage of a search: a space, its optimizer and its part of the budget."""

    name: Name = Field(description="Unique among the stages.")
    space: Annotated[_Text | Annotated[dict[StrictStr, Any], Tag("<mapping>")], Discriminator(_branch)] = Field(
        description="As `space` of a job; `merged` among its sources is the best merge of the stages before."
    )
    optimizer: Annotated[_Text | Annotated[OptimizerChoice, Tag("<mapping>")], Discriminator(_branch)] | None = Field(
        None, description="The job's optimizer if unset."
    )
    evaluations: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Its part of the budget; an equal part of what is left if unset."
    )


class Budget(Strict):
    """When to stop."""

    evaluations: Annotated[StrictInt, Field(ge=1)] = Field(
        200, description="Candidates scored on the search set, failed and injected ones included, reused ones not."
    )
    failures: Annotated[Number, Field(gt=0, le=1)] = Field(
        0.5, description="Share of failed candidates (after the first 20) above which the run stops."
    )


class Cluster(Strict):
    """Where candidates are scored."""

    backend: Literal["ray", "local"] = Field("ray", description="ray, or local processes.")
    workers: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="At most so many; if unset one per core or GPU, of a cluster as many as it holds at any time."
    )
    address: StrictStr | None = Field(
        None, description="A running Ray cluster: HOST:PORT, or auto for the one of this host; a local one if unset."
    )
    cpus_per_worker: Annotated[Number, Field(gt=0)] = Field(1, description="Cores that a worker reserves of a cluster.")
    gpus_per_worker: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="1 on GPUs if unset; 0.25 lets four workers share one, 2 spreads a model over two."
    )
    mixed_devices: Literal["refuse", "record"] = Field(
        "refuse", description="Workers on devices of another kind: leave them idle, or use them and record it."
    )
    cache: StrictStr | None = Field(
        None, description="A folder of each node into which parents are copied once; may begin with $VARIABLE."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the models live.")
    compile: Literal["auto", "always", "never"] = Field("auto", description="Compile the merge kernels.")
    parents: Literal["auto", "device", "host", "disk"] = Field(
        "auto", description="Where the parents live: on the device, copied into the host's memory, or mapped from disk."
    )
    task_vectors: Literal["exact", "int8"] = Field(
        "exact", description="What a search merges: parents, or their differences from the base in eight bits."
    )
    candidate_timeout_s: Annotated[Number, Field(gt=0)] = Field(3600, description="Limit for one candidate.")
    drain_s: Annotated[Number, Field(ge=0)] = Field(30, description="Time for running candidates after Ctrl-C.")


class Job(Strict):
    """A search, in one file."""

    name: Name = Field("run", description="Name of the run and of its folder under runs/.")
    parents: Parents
    space: Annotated[_Text | Annotated[dict[StrictStr, Any], Tag("<mapping>")], Discriminator(_branch)] | None = Field(
        None, description="A preset of `evomerge ls spaces`, a path, or the space itself."
    )
    stages: list[Stage] | None = Field(
        None, description="Instead of `space`: several searches, each from the best merges so far.", min_length=1
    )
    suite: Annotated[_Text | Annotated[Suite, Tag("<mapping>")], Discriminator(_branch)] = Field(
        description="A suite of `evomerge ls suites`, a path, or the suite itself."
    )
    objectives: list[Objective] = Field(min_length=1)
    constraints: list[Constraint] = Field(default=[])
    optimizer: Annotated[_Text | Annotated[OptimizerChoice, Tag("<mapping>")], Discriminator(_branch)] = Field(
        default=OptimizerChoice(), description="A name, or a mapping with its settings."
    )
    inject: list[StrictStr] = Field(default=[], description="Recipe files for generation 0.")
    budget: Budget = Field(default=Budget())
    cluster: Cluster = Field(default=Cluster())
    track: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        default=[], description="Where progress is shown besides: libraries that are installed."
    )
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0

"""What is known of one model on one item set: answers, the failure, and what is still to be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from evomerge.errors import StoreError
from evomerge.runs.partial import Items, merge_evaluations
from evomerge.runs.records import Evaluated, Failed
from evomerge.runs.store import RunStore
from evomerge.types import Evaluation, Failure


@dataclass(frozen=True)
class Known:
    """What all lives together have found out about one model on one set.

    Attributes:
        evaluation: every answer; None before the first.
        whole: the set was asked at once, so no item can be missing.
        failure: what happened when more than `evaluation` was asked; nothing more is asked then.
        lost: recorded answers whose files are lost; they may be asked again, also of a model that failed later.
        n_parts: number of the last increment, lost ones included; 0 without.
        costs: what the model costs, once it was told; it is not asked again.
    """

    evaluation: Evaluation | None = None
    whole: bool = False
    failure: Failure | None = None
    lost: tuple[Evaluated, ...] = ()
    n_parts: int = 0
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def missing(self, wanted: Items) -> Items:
        """What of `wanted` has no answer, in the same order; tasks without such an item are left out."""
        if self.whole or self.evaluation is None:
            return {} if self.whole else wanted
        answers = self.evaluation.answers
        answered = {name: frozenset(a.items) for name, a in answers.items()}
        left = {name: tuple(i for i in items if i not in answered.get(name, ())) for name, items in wanted.items()}
        return {name: items for name, items in left.items() if items}

    def part_number(self, responses: str) -> int:
        """The number of a fresh increment: a new one, unless its answers are those of a lost file."""
        return next((r.part for r in self.lost if r.part and r.responses == responses), self.n_parts + 1)

    def with_whole(self, evaluation: Evaluation) -> Known:
        """After the whole set was answered at once."""
        return replace(self, evaluation=evaluation, whole=True, lost=(), costs=evaluation.costs)

    def with_part(self, number: int, part: Evaluation, order: Items) -> Known:
        """After an increment was answered; all answers are in the order of the plan."""
        parts = [part] if self.evaluation is None else [self.evaluation, part]
        lost = tuple(r for r in self.lost if r.part != number)
        merged = merge_evaluations(parts, order)
        return replace(self, evaluation=merged, lost=lost, n_parts=max(self.n_parts, number), costs=merged.costs)

    def with_costs(self, evaluation: Evaluation) -> Evaluation:
        """An evaluation with the costs that were told before, if there are any: the first measurement counts."""
        return replace(evaluation, costs=self.costs) if self.costs else evaluation

    def with_failure(self, failure: Failure) -> Known:
        """After the model failed; the first failure counts, and what was lost before it stays so."""
        return replace(self, failure=self.failure or failure, lost=())

    def ordered(self, order: Items | None) -> Known:
        """The same answers in the order of the plan; those to a whole set are so already."""
        if self.whole or self.evaluation is None or order is None:
            return self
        return replace(self, evaluation=merge_evaluations([self.evaluation], order))


def load_known(store: RunStore, parts: Sequence[Evaluated | Failed]) -> Known:
    """What the journal and the answers of earlier lives say of one model on one set; lost files are no error.

    Args:
        store: the run.
        parts: see `History.parts`.
    """
    found: list[Evaluation] = []
    whole: Evaluation | None = None
    lost: list[Evaluated] = []
    scored = [record for record in parts if isinstance(record, Evaluated)]
    for record in scored:
        try:
            evaluation = store.load_responses(record)
        except StoreError:
            lost.append(record)
            continue
        found.append(evaluation)
        whole = evaluation if record.part == 0 else whole
    failures = [record.failure for record in parts if isinstance(record, Failed)]
    return Known(
        evaluation=whole or (merge_evaluations(found) if found else None),
        whole=whole is not None,
        failure=failures[0] if failures else None,
        lost=() if whole is not None else tuple(lost),
        n_parts=max((record.part for record in scored), default=0),
        costs=next((record.costs for record in scored if record.costs), {}),
    )

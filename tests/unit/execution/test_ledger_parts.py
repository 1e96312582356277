"""The ledger asked for parts of a set, on answers that are counted: against a dictionary that does the obvious."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.digest import digest_json
from evomerge.errors import Interrupted, TooManyFailures
from evomerge.evaluation.objectives import CustomObjective
from evomerge.execution.ledger import Ledger, Request, recorded_outcomes
from evomerge.execution.pool import Completed, EvaluationPool
from evomerge.runs.records import Evaluated, Failed, Opened, Record, Reused
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import JOURNAL, RESPONSES, RunStore
from evomerge.types import CandidateId, EvalTask, Evaluation, Failure, Outcome, SetName, TaskAnswers

ORDER = {s: {t: tuple(f"{s}-{t}{i}" for i in range(6)) for t in ("add", "rev")} for s in ("search", "select")}
ITEMS = [(task, item) for task, items in ORDER["search"].items() for item in items]
Items = dict[str, tuple[str, ...]]


@pytest.fixture(autouse=True, scope="module")
def memory_is_disk_enough() -> Iterator[None]:
    """No life here ends by a power cut, so nothing waits for a disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


class Killed(Exception):
    """The process ends here."""


def request(number: int, alias: str = "m", poison: str = "") -> Request:
    """A model; asked the item `poison`, it fails."""
    recipe = {"number": number, "poison": poison}
    return Request(CandidateId(f"{alias}{number}"), digest_json(recipe), recipe)


def score_of(number: int, item: str) -> float:
    return hashlib.sha256(f"{number} {item}".encode()).digest()[0] / 255


class CountingPool(EvaluationPool):
    """Answers at once, newest first, and counts every (recipe, item); may be killed before an answer."""

    n_workers = 2

    def __init__(self, kill_after: int = -1) -> None:
        self.asked: Counter[tuple[int, str]] = Counter()
        self.tasks: list[EvalTask] = []
        self._waiting: deque[EvalTask] = deque()
        self._left = kill_after

    def submit(self, task: EvalTask) -> None:
        self._waiting.append(task)

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        if not self._waiting:
            return None
        if self._left == 0:
            raise Killed
        self._left -= 1
        task = self._waiting.pop()
        self.tasks.append(task)
        return Completed(task, self._answer(task), "w", 1)

    def _answer(self, task: EvalTask) -> Outcome:
        number, items = task.recipe["number"], task.items or ORDER[task.set_name]
        if task.recipe["poison"] in [i for hashes in items.values() for i in hashes]:
            return Failure("nan", f"{task.recipe['poison']} gives NaN")
        answers = {}
        for name, hashes in items.items():
            self.asked.update((number, item) for item in hashes)
            scores = tuple(score_of(number, item) for item in hashes)
            answers[name] = TaskAnswers(name, hashes, scores, tuple(-s for s in scores), tuple("s" for _ in hashes))
        return Evaluation(task.set_name, answers, {"score": 1.0})

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        dropped = tuple(self._waiting)
        self._waiting.clear()
        return dropped

    def close(self) -> None:
        self._waiting.clear()


@dataclass
class Watch:
    """Counts what the watcher is told; stops when asked the given number of times."""

    stop_after: int = -1
    told: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self) -> bool:
        self.stop_after -= 1
        return self.stop_after == -1

    def phase(self, name: str, total: int, done: int) -> None:
        pass

    def batch(self, number: int) -> None:
        pass

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        self.told.append((request.id, type(outcome).__name__))


@dataclass
class Life:
    """One life of a run in a folder."""

    folder: Path
    pool: CountingPool = field(default_factory=CountingPool)
    watch: Watch = field(default_factory=Watch)
    failure_share: float = 1.0
    custom: Sequence[CustomObjective] = ()

    def __enter__(self) -> Ledger:
        exists = (self.folder / JOURNAL).exists()
        self.store = RunStore.open(self.folder, write=True) if exists else RunStore.create(self.folder, {"job": ""})
        history = read_history(self.store.entries())
        self.store.append(Opened(len(history.lives) + 1, exists, "host", 1))
        return Ledger(
            self.store,
            self.pool,
            known=recorded_outcomes(self.store, history),
            reused=history.reused,
            stop=self.watch,
            drain_s=0.0,
            failure_share=self.failure_share,
            watcher=self.watch,
            custom=self.custom,
            order=ORDER,
        )

    def __exit__(self, *_: object) -> None:
        self.store.close()


def history_of(folder: Path) -> History:
    with RunStore.open(folder, write=False) as store:
        return read_history(store.entries())


def items(**tasks: Sequence[int]) -> Items:
    """Items of the search set by number, in the order given."""
    return {t: tuple(ORDER["search"][t][i] for i in numbers) for t, numbers in tasks.items()}


def view(number: int, **tasks: Sequence[int]) -> Evaluation:
    """The answers of a model to items of the search set."""
    answers = {}
    for task, hashes in items(**tasks).items():
        scores = tuple(score_of(number, h) for h in hashes)
        answers[task] = TaskAnswers(task, hashes, scores, tuple(-s for s in scores), tuple("s" for _ in hashes))
    return Evaluation("search", answers)


def test_only_what_is_missing_is_asked_and_everything_requested_is_told(tmp_path: Path) -> None:
    life = Life(tmp_path / "run")
    with life as ledger:
        assert ledger.score([request(1)], "search", items=items(add=[4, 0])) == (view(1, add=[0, 4]),)
        assert ledger.score([request(1)], "search", items=items(rev=[2], add=[4, 1])) == (
            view(1, add=[0, 1, 4], rev=[2]),
        )
        assert ledger.score([request(1)], "search", items=items(add=[0])) == (view(1, add=[0, 1, 4], rev=[2]),)
        whole = view(1, add=range(6), rev=range(6))
        assert ledger.score([request(1)], "search") == (whole,)
        assert ledger.score([request(1)], "search", items=items(add=[0])) == (whole,)
        assert [dict(t.items or {}) for t in life.pool.tasks] == [
            items(add=[0, 4]),
            items(add=[1], rev=[2]),
            items(add=[2, 3, 5], rev=[0, 1, 3, 4, 5]),
        ]
    assert set(life.pool.asked.values()) == {1}
    assert [r.part for r in history_of(tmp_path / "run").parts[(request(1).digest, "search")]] == [1, 2, 3]
    assert life.watch.told == [("m1", "Evaluation")]


def test_a_whole_set_answers_every_later_part(tmp_path: Path) -> None:
    life = Life(tmp_path / "run")
    with life as ledger:
        ledger.score([request(1)], "search")
        ledger.score([request(1, "x")], "search", items=items(add=[0]))
        assert [t.items for t in life.pool.tasks] == [None]
    (record,) = history_of(tmp_path / "run").parts[(request(1).digest, "search")]
    assert isinstance(record, Evaluated)
    assert (record.part, "part" in record.to_json()) == (0, False)


def test_a_resumed_walk_is_told_what_it_has_requested_and_no_more(tmp_path: Path) -> None:
    with Life(tmp_path / "run") as ledger:
        ledger.score([request(1)], "search", items=items(add=[0]))
        ledger.score([request(1)], "search", items=items(add=[0, 1, 2], rev=[3]))
        ledger.score([request(2)], "search")
    life = Life(tmp_path / "run")
    with life as ledger:
        assert ledger.known(request(1).digest, "search", items(add=[2]))
        assert not ledger.known(request(1).digest, "search", items(add=[3]))
        assert not ledger.known(request(1).digest, "search")
        assert ledger.score([request(1), request(2)], "search", items=items(add=[0])) == (
            view(1, add=[0]),
            view(2, add=[0]),
        )
        assert ledger.score([request(1)], "search", items=items(add=[2])) == (view(1, add=[0, 2]),)
        assert ledger.score([request(2)], "search") == (view(2, add=range(6), rev=range(6)),)
    assert life.pool.tasks == []


def test_a_failure_stays_at_the_point_where_it_happened(tmp_path: Path) -> None:
    poisoned = request(1, poison="search-add3")
    failure = Failure("nan", "search-add3 gives NaN")
    first = items(add=[0, 1])
    for life in (Life(tmp_path / "run"), Life(tmp_path / "run")):
        with life as ledger:
            assert ledger.score([poisoned], "search", items=first) == (view(1, add=[0, 1]),)
            assert ledger.score([poisoned], "search", items=items(add=[0, 3])) == (failure,)
            assert ledger.score([poisoned], "search", items=items(rev=[0])) == (failure,)
            assert ledger.score([poisoned], "search") == (failure,)
            assert ledger.known(poisoned.digest, "search")
            # what it had answered before is still an answer
            assert ledger.score([poisoned], "search", items=items(add=[1])) == (view(1, add=[0, 1]),)
    assert life.pool.tasks == []
    history = history_of(tmp_path / "run")
    assert isinstance(history.outcomes[(poisoned.digest, "search")], Failed)
    assert [type(r) for r in history.parts[(poisoned.digest, "search")]] == [Evaluated, Failed]
    assert (history.counts.evaluated, history.counts.failed, history.counts.questions) == (0, 1, 2)


def test_repeats_of_a_recipe_with_other_items_continue(tmp_path: Path) -> None:
    life = Life(tmp_path / "run")
    with life as ledger:
        ledger.score([request(1)], "search", items=items(add=[0, 1]))
        assert ledger.score([request(1, "x")], "search", items=items(add=[1, 2])) == (view(1, add=[0, 1, 2]),)
        assert ledger.score([request(1), request(1, "x")], "search", items=items(add=[3])) == (
            view(1, add=[0, 1, 2, 3]),
            view(1, add=[0, 1, 2, 3]),
        )
    assert set(life.pool.asked.values()) == {1}
    history = history_of(tmp_path / "run")
    assert history.reused == {("x1", "search")}
    assert [r.id for r in history.parts[(request(1).digest, "search")]] == ["m1", "x1", "m1"]
    assert (history.counts.evaluated, history.counts.reused, history.counts.questions) == (1, 1, 4)
    assert history.counts.repeated == 0


def test_limit_and_spent_count_models(tmp_path: Path) -> None:
    part, more = items(add=[0]), items(add=[1], rev=[1])
    for resumed in (False, True):
        with Life(tmp_path / "run") as ledger:
            requests = [request(1), request(2), request(3)]
            first = ledger.score(requests, "search", limit=2, items=part)
            assert first == (view(1, add=[0]), view(2, add=[0]), None)
            assert ledger.spent == 2
            second = ledger.score(requests[:2], "search", limit=0, items=more)
            assert None not in second
            assert ledger.spent == 2
            assert ledger.score(requests, "search", limit=0, items=more)[2] is None
            ledger.score(requests[:1], "select")
            assert ledger.spent == 2, resumed


@pytest.mark.parametrize("wanted", [{}, {"add": ()}, {"add": ("search-rev0",)}, {"mul": ("search-add0",)}])
def test_a_choice_that_the_plan_does_not_have_is_a_mistake_of_the_program(tmp_path: Path, wanted: Items) -> None:
    with Life(tmp_path / "run") as ledger, pytest.raises(ValueError, match="a choice of search items"):
        ledger.score([request(1)], "search", items=wanted)


def test_without_a_plan_no_part_can_be_requested(tmp_path: Path) -> None:
    life = Life(tmp_path / "run")
    with life:
        bare = Ledger(
            life.store, life.pool, known={}, reused=frozenset(), stop=life.watch, drain_s=0.0, failure_share=1.0,
            watcher=life.watch,
        )  # fmt: skip
        with pytest.raises(ValueError, match="1 are not in the plan, 0 tasks are"):
            bare.score([request(1)], "search", items=items(add=[0]))
        assert bare.score([request(1)], "search") == (view(1, add=range(6), rev=range(6)),)


class Sloppy(CountingPool):
    """Answers the whole set whatever it is asked, but never `search-rev5`."""

    def _answer(self, task: EvalTask) -> Outcome:
        return view(task.recipe["number"], add=range(6), rev=range(5))


def test_answers_to_other_questions_are_dropped_and_missing_ones_are_a_failure(tmp_path: Path) -> None:
    with Life(tmp_path / "run", Sloppy()) as ledger:
        assert ledger.score([request(1)], "search", items=items(add=[2])) == (view(1, add=[2]),)
        assert ledger.score([request(1)], "search", items=items(rev=[4, 5])) == (
            Failure("evaluate", "1 of 2 items were answered"),
        )


def test_failures_are_judged_as_this_walk_meets_them(tmp_path: Path) -> None:
    """A life that knows of failures ahead does not end before the walk has come to them."""
    models = [request(i, poison="search-add5") for i in range(20)]
    with Life(tmp_path / "run") as ledger:
        ledger.score(models, "search", items=items(add=[0]))
        ledger.score(models, "search", items=items(add=[5]))
    with Life(tmp_path / "run", failure_share=0.9) as ledger:
        assert ledger.score(models, "search", items=items(add=[0])) == tuple(view(i, add=[0]) for i in range(20))
        with pytest.raises(TooManyFailures, match="20 of 20, one by nan: search-add5 gives NaN"):
            ledger.score(models, "search", items=items(add=[5]))


def test_values_of_custom_objectives_are_of_all_that_was_answered(tmp_path: Path) -> None:
    size = CustomObjective("size", lambda evaluation: float(evaluation.n_questions))
    with Life(tmp_path / "run", custom=[size]) as ledger:
        ledger.score([request(1)], "search", items=items(add=[0]))
        ledger.score([request(1)], "search", items=items(add=[1], rev=[2]))
    record = history_of(tmp_path / "run").record(request(1).digest, "search")
    assert record is not None
    assert record.values == {"size": (3.0, 0.0)}


def response_file(folder: Path, record: Record) -> Path:
    assert isinstance(record, Evaluated)
    return next((folder / RESPONSES).glob(f"{record.recipe[:16]}-*-{record.responses[:16]}.json"))


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("poison", ["", "search-rev5"])
def test_of_a_lost_file_only_its_increment_is_asked_again(tmp_path: Path, lost: int, poison: str) -> None:
    folder, model = tmp_path / "run", request(1, poison=poison)
    steps = [items(add=[0, 1]), items(add=[1, 2], rev=[0]), items(rev=[5])]
    with Life(folder) as ledger:
        calm = [ledger.score([model], "search", items=step) for step in steps]
    before = history_of(folder).parts[(model.digest, "search")]
    path = response_file(folder, before[lost])
    whole = path.read_bytes()
    path.unlink()
    life = Life(folder)
    with life as ledger:
        assert [ledger.score([model], "search", items=step) for step in steps] == calm
        assert [t.items for t in life.pool.tasks] == [[items(add=[0, 1]), items(add=[2], rev=[0])][lost]]
    history = history_of(folder)
    assert path.read_bytes() == whole
    assert history.parts[(model.digest, "search")] == before
    assert history.counts.repeated == 1
    with Life(folder) as ledger:  # and the life after it knows everything
        assert [ledger.score([model], "search", items=step) for step in steps] == calm


def test_a_lost_whole_set_is_asked_again_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Life(folder) as ledger:
        calm = ledger.score([request(1)], "search")
    response_file(folder, history_of(folder).outcomes[(request(1).digest, "search")]).unlink()
    life = Life(folder)
    with life as ledger:
        assert ledger.score([request(1)], "search") == calm
        assert [t.items for t in life.pool.tasks] == [None]
    assert life.watch.told == [("m1", "Evaluation")]


# -- any walk, any crash -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One call of `score`: who (number, alias), what (None: the whole set)."""

    who: tuple[tuple[int, str], ...]
    what: tuple[tuple[str, str], ...] | None

    @property
    def items(self) -> Items | None:
        if self.what is None:
            return None
        return {t: tuple(i for task, i in self.what if task == t) for t in dict.fromkeys(t for t, _ in self.what)}


def obvious(steps: Sequence[Step], poisons: Sequence[str]) -> Iterator[tuple[Outcome, ...]]:
    """What each step is told, from dictionaries of items alone."""
    wanted: dict[int, set[str]] = {}
    answered: dict[int, set[str]] = {}
    failed: set[int] = set()
    for step in steps:
        asked = {item for _, item in (ITEMS if step.what is None else step.what)}
        for number, _ in step.who:
            wanted.setdefault(number, set()).update(asked)
            missing = asked - answered.setdefault(number, set())
            if missing and number not in failed:
                if poisons[number] in missing:
                    failed.add(number)
                else:
                    answered[number] |= missing
        told: list[Outcome] = []
        for number, _ in step.who:
            if asked <= answered[number]:
                seen = wanted[number] & answered[number]
                places = {t: [i for i in range(6) if f"search-{t}{i}" in seen] for t in ORDER["search"]}
                told.append(view(number, **{t: found for t, found in places.items() if found}))
            else:
                told.append(Failure("nan", f"{poisons[number]} gives NaN"))
        yield tuple(told)


MODELS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("mx")), min_size=1, max_size=4, unique=True)
CHOICES = st.none() | st.lists(st.sampled_from(ITEMS), min_size=1, max_size=6, unique=True).map(tuple)
STEPS = st.lists(st.builds(lambda w, c: Step(tuple(w), c), MODELS, CHOICES), min_size=1, max_size=5)
POISONS = st.lists(st.sampled_from(["", "", "search-add3", "search-rev0"]), min_size=3, max_size=3)


def walk(
    ledger: Ledger, steps: Sequence[Step], poisons: Sequence[str]
) -> Iterator[tuple[tuple[Outcome | None, ...], int]]:
    """What every step is told, and how many models it has spent."""
    for step in steps:
        requests = [request(number, alias, poisons[number]) for number, alias in step.who]
        yield ledger.score(requests, "search", items=step.items), ledger.spent


def events(folder: Path) -> Counter[str]:
    """What is in a journal but for lives, as a bag."""
    with RunStore.open(folder, write=False) as store:
        return Counter(repr(r) for r in store.records() if isinstance(r, Evaluated | Failed | Reused))


@settings(deadline=None, max_examples=40)
@given(STEPS, POISONS, st.lists(st.integers(0, 6), max_size=3), st.booleans())
def test_any_walk_with_any_crashes_is_told_what_the_undisturbed_one_is(
    steps: list[Step], poisons: list[str], crashes: list[int], gently: bool
) -> None:
    expected = list(obvious(steps, poisons))
    with tempfile.TemporaryDirectory() as scratch:
        calm = Life(Path(scratch) / "calm")
        with calm as ledger:
            told = list(walk(ledger, steps, poisons))
        assert [outcomes for outcomes, _ in told] == expected
        folder, asked = Path(scratch) / "run", Counter[tuple[int, str]]()
        before = b""
        for crash in crashes:
            life = Life(folder, CountingPool(-1 if gently else crash), Watch(crash if gently else -1))
            with life as ledger, suppress(Killed, Interrupted):
                assert list(walk(ledger, steps, poisons)) == told
            asked += life.pool.asked
            now = (folder / JOURNAL).read_bytes()
            assert now.startswith(before)
            before = now
        last = Life(folder)
        with last as ledger:
            assert list(walk(ledger, steps, poisons)) == told
        asked += last.pool.asked
        assert asked == calm.pool.asked
        assert set(asked.values()) <= {1}
        assert events(folder) == events(calm.folder)
        assert history_of(folder).counts == history_of(calm.folder).counts


@settings(deadline=None, max_examples=25)
@given(STEPS, POISONS, st.data())
def test_a_journal_that_ends_anywhere_and_files_that_are_lost_change_nothing_that_is_told(
    steps: list[Step], poisons: list[str], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        with Life(Path(scratch) / "calm") as ledger:
            told = list(walk(ledger, steps, poisons))
        folder = Path(scratch) / "cut"
        shutil.copytree(Path(scratch) / "calm", folder)
        lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
        cut = data.draw(st.integers(1, len(lines)), "cut")
        (folder / JOURNAL).write_bytes(b"".join(lines[:cut]))
        for path in sorted((folder / RESPONSES).glob("*-search-*.json")):
            if data.draw(st.booleans(), f"lose {path.name}"):
                path.unlink()
        with Life(folder) as ledger:
            assert list(walk(ledger, steps, poisons)) == told
        again = Life(folder)
        with again as ledger:
            assert list(walk(ledger, steps, poisons)) == told
        assert again.pool.tasks == []
        assert history_of(folder).outcomes.keys() == history_of(Path(scratch) / "calm").outcomes.keys()


def test_the_obvious_reading_knows_failures_and_parts() -> None:
    """The oracle is no echo: by hand, on a walk with both."""
    steps = [Step(((0, "m"),), (ITEMS[0],)), Step(((0, "m"),), (ITEMS[3],)), Step(((0, "x"),), (ITEMS[0],))]
    failure = Failure("nan", "search-add3 gives NaN")
    assert list(obvious(steps, ["search-add3"])) == [(view(0, add=[0]),), (failure,), (view(0, add=[0]),)]

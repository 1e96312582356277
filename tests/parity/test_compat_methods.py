"""`compat: mergekit` equals mergekit 0.1.5 bit for bit: every method, dtype and setting, on tensors of every shape."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging.compat import compat_dtype, merge_compat
from evomerge.merging.compat_case import HashedDraws
from evomerge.merging.plan import MERGEKIT_METHODS
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.methods import method_spec
from evomerge.seeds import generator
from evomerge.testing.peer import (
    SETTINGS,
    GlobalDraws,
    agreement,
    mergekit_tensor,
    models_of,
    parameters_of,
)

pytest.importorskip("mergekit")
pytestmark = pytest.mark.parity

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(), (1,), (7,), (1, 1), (33, 65), (64, 1), (3, 16, 20), (120, 260)]
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors(shape, dtype, spread=4e-4, seed=0):
    """A base and three models whose deltas look like fine-tuning: on bf16 they lie on a coarse lattice."""
    rng = generator(seed, "compat", str(shape))
    noise = [torch.from_numpy(rng.standard_normal(math.prod(shape))).reshape(shape) for _ in range(4)]
    base = noise[0].mul(0.02).to(dtype)
    return base, [(base.double() + spread * x).to(dtype) for x in noise[1:]]


def bases_of(spec: MethodSpec, base):
    return [base] if spec.needs_base else [None, base] if spec.takes_base else [None]


def both(method, base, models, setting):
    """mergekit's tensor and ours from the same draws, each an exception where it stops."""
    results = []
    for merge in (
        lambda: mergekit_tensor(method, base, models, setting),
        lambda: merge_compat(method, base, models, parameters_of(method, setting), GlobalDraws()),
    ):
        torch.manual_seed(3)
        try:
            results.append(merge())
        except (MergeError, ValueError, RuntimeError, IndexError) as error:
            results.append(error)
    return results


def assert_equal(theirs, ours, what):
    if isinstance(theirs, Exception):
        assert isinstance(ours, MergeError), (what, theirs, ours)
        return
    assert not isinstance(ours, Exception), (what, ours)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), what
    assert agreement(ours, theirs).share == 1, what


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("method", MERGEKIT_METHODS)
def test_every_method_has_mergekits_bits_given_its_draws(method, dtype):
    spec = method_spec(method)
    for shape in SHAPES:
        for spread in (4e-4, 0.3):
            base, models = tensors(shape, dtype, spread)
            for setting in SETTINGS[method]:
                merged = models[: models_of(spec, setting)]
                for origin in bases_of(spec, base):
                    theirs, ours = both(method, origin, merged, setting)
                    assert_equal(theirs, ours, (shape, spread, setting, origin is None))
                    vanishing = method == "karcher" and shape == ()  # then it is narrow where norms are below tol
                    if not (isinstance(theirs, Exception) or vanishing):
                        assert theirs.dtype == compat_dtype(method, [dtype], shape, len(merged))


@pytest.mark.parametrize("method", MERGEKIT_METHODS)
def test_every_parameter_of_a_method_is_tried(method):
    tried = set().union(*(set(setting) for setting in SETTINGS[method]))
    assert tried == set(method_spec(method).parameters)


@pytest.mark.parametrize("method", MERGEKIT_METHODS)
def test_the_parameters_are_mergekits(method):
    from mergekit.merge_methods import registry

    theirs = {p.name: (p.scope.value != "shared", p) for p in registry.get(method).spec.parameters}
    without_effect = {"int8_mask"} | ({"rescale", "density"} if method == "task_arithmetic" else set())
    ours = method_spec(method).parameters
    assert set(ours) == set(theirs) - without_effect
    for name, spec in ours.items():
        per_parent, peer = theirs[name]
        assert spec.per_parent == per_parent
        assert spec.default == (None if peer.required else 1.0 if name == "scale" else peer.default)


@pytest.mark.parametrize(
    "method", [m for m in MERGEKIT_METHODS if "int8_mask" in str(SETTINGS) or m in ("ties", "sce")]
)
def test_masks_of_bytes_change_no_bit_in_mergekit(method):
    base, models = tensors((33, 65), torch.bfloat16)
    for setting in SETTINGS[method]:
        theirs = mergekit_tensor(method, base, models, {**setting, "int8_mask": True})
        assert_equal(theirs, merge_compat(method, base, models, parameters_of(method, setting)), setting)


def test_density_and_rescale_change_no_bit_of_task_arithmetic_in_mergekit():
    base, models = tensors((33, 65), torch.bfloat16)
    setting = SETTINGS["task_arithmetic"][0]
    more = {**setting, "density": (0.1, 0.2, 0.3), "rescale": True}
    theirs = mergekit_tensor("task_arithmetic", base, models, more)
    assert_equal(
        theirs, merge_compat("task_arithmetic", base, models, parameters_of("task_arithmetic", setting)), setting
    )


@pytest.mark.parametrize("method", MERGEKIT_METHODS)
def test_whole_state_dicts(method):
    """mergekit batches tensors of one shape; ours are merged one by one."""
    from mergekit.merge_methods import merge_state_dicts

    spec, setting = method_spec(method), SETTINGS[method][0]
    shapes = {"a": (16, 24), "b": (16, 24), "c": (24,), "d": (40, 16), "e": (16, 24)}
    made = {name: tensors(shape, torch.bfloat16, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    count = models_of(spec, setting)
    dicts = {f"m{i}": {name: made[name][1][i] for name in shapes} for i in range(count)}
    base = "m0" if method == "slerp" else "base" if spec.needs_base else None
    if base == "base":
        dicts["base"] = {name: made[name][0] for name in shapes}
    given = {k: {f"m{i}": x for i, x in enumerate(v)} if isinstance(v, tuple) else v for k, v in setting.items()}
    torch.manual_seed(5)
    theirs = merge_state_dicts(dicts, method, parameters=given, base=base)
    torch.manual_seed(5)
    for name in shapes:
        origin, models = made[name][0] if spec.needs_base else None, made[name][1][:count]
        ours = merge_compat(method, origin, models, parameters_of(method, setting), GlobalDraws())
        assert_equal(theirs[name], ours, name)


@pytest.mark.parametrize("method", MERGEKIT_METHODS)
def test_mixed_dtypes_are_promoted(method):
    spec, setting = method_spec(method), SETTINGS[method][0]
    base, models = tensors((24, 20), torch.bfloat16)
    models = [models[0].half(), *models[1:]][: models_of(spec, setting)]
    origin = base if spec.needs_base else None
    given = [*models] if origin is None else [*models, origin]
    theirs, _ = both(method, origin, models, setting)
    stored = compat_dtype(method, [x.dtype for x in given], base.shape, len(models))
    assert stored == theirs.dtype
    wide, origin = [x.to(stored) for x in models], None if origin is None else origin.to(stored)
    torch.manual_seed(3)
    ours = merge_compat(method, origin, wide, parameters_of(method, setting), GlobalDraws())
    assert_equal(theirs, ours, method)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,)], ids=str)
def test_tensors_without_elements(shape, dtype):
    """Empty as in mergekit; four methods, which stop at some of them in mergekit, refuse all."""
    base = torch.empty(shape, dtype=dtype)
    for method in MERGEKIT_METHODS:
        spec, setting = method_spec(method), SETTINGS[method][0]
        models = [base.clone() for _ in range(models_of(spec, setting))]
        origin = base if spec.needs_base else None
        if method in ("multislerp", "della", "della_linear", "arcee_fusion"):
            with pytest.raises(MergeError, match="without elements"):
                merge_compat(method, origin, models, parameters_of(method, setting))
        else:
            theirs, ours = both(method, origin, models, setting)
            assert_equal(theirs, ours, method)


class TestOurDraws:
    """Where mergekit draws from the global generator, our masks agree with its masks in distribution."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("method", RANDOM)
    def test_kept_share_scale_and_signs(self, method, dtype):
        base, models = tensors((300, 400), dtype, 0.05)
        setting = {"weight": (1.0,), "density": (0.4,), "normalize": False}
        torch.manual_seed(11)
        theirs = mergekit_tensor(method, base, models[:1], setting)
        ours = merge_compat(method, base, models[:1], parameters_of(method, setting))
        deltas = [(x.double() - base.double()) for x in (ours, theirs)]
        kept = [float((d.abs() > 1e-4).double().mean()) for d in deltas]
        spread = math.sqrt(2 * 0.4 * 0.6 / base.numel())
        assert abs(kept[0] - kept[1]) < 5 * spread
        full = (models[0].double() - base.double()).abs().sum()
        norms = [float(d.abs().sum() / full) for d in deltas]
        assert norms[0] == pytest.approx(norms[1], rel=0.01)
        assert norms[0] == pytest.approx(1, rel=0.01)  # the rule of the L1 norm
        moved = (deltas[0].abs() > 1e-4) & (deltas[1].abs() > 1e-4)
        assert moved.any()
        assert torch.equal(deltas[0][moved].sign(), deltas[1][moved].sign())

    def test_masks_by_rank_keep_large_entries_more_often_in_both(self):
        base = torch.zeros(200, 512)
        model = torch.from_numpy(generator(5, "rank").standard_normal((200, 512))).float()
        setting = {"weight": (1.0,), "density": (0.5,), "epsilon": (0.3,), "rescale": False, "normalize": False}
        rank = model.abs().argsort(dim=1).argsort(dim=1)
        torch.manual_seed(1)
        both = (
            mergekit_tensor("della", base, [model], setting),
            merge_compat("della", base, [model], parameters_of("della", setting)),
        )
        for quarter in range(4):
            there = rank // 128 == quarter
            shares = [float((merged[there] != 0).double().mean()) for merged in both]
            expected = 0.2 + 0.6 * (quarter + 0.5) / 4
            assert shares == pytest.approx([expected, expected], abs=0.02)

    def test_masks_are_nested_and_depend_on_seed_and_parent(self):
        parameters = parameters_of("dare_linear", {"weight": (1.0, 1.0)})
        few, many = (HashedDraws(parameters).bernoulli(0, torch.full((4000,), p)).bool() for p in (0.2, 0.6))
        assert torch.equal(few & many, few)
        other = HashedDraws(parameters_of("dare_linear", {"weight": (1.0, 1.0)}, seed=1))
        drawn = [HashedDraws(parameters).bernoulli(1, torch.full((4000,), 0.6)).bool()]
        drawn.append(other.bernoulli(0, torch.full((4000,), 0.6)).bool())
        for mask in drawn:
            assert float((mask == many).double().mean()) == pytest.approx(0.52, abs=0.04)

    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_certain_masks(self, p):
        mask = HashedDraws(parameters_of("della", SETTINGS["della"][0])).bernoulli(0, torch.full((999,), p))
        assert torch.equal(mask, torch.full((999,), p))


class TestLargeTensors:
    """Above a million elements arcee_fusion takes its quantiles from a sample."""

    def test_with_mergekits_sample_the_bits_are_mergekits(self):
        base, models = tensors((1000, 1003), torch.bfloat16)
        assert_equal(*both("arcee_fusion", base, models[:1], {}), "sampled")

    def test_with_our_sample_nearly_the_same_entries_are_taken(self):
        base, models = tensors((1000, 1003), torch.float32, 0.01)
        torch.manual_seed(0)
        theirs = mergekit_tensor("arcee_fusion", base, models[:1], {})
        ours = merge_compat("arcee_fusion", base, models[:1], parameters_of("arcee_fusion", {}))
        taken = [float((x != base).double().mean()) for x in (theirs, ours)]
        assert 0.005 < taken[0] < 0.3
        assert taken[1] == pytest.approx(taken[0], rel=0.02)
        assert float(((ours != base) == (theirs != base)).double().mean()) > 0.999

    def test_our_sample_covers_the_tensor(self):
        places = HashedDraws(parameters_of("arcee_fusion", {})).sample(2_000_000, 1_000_000)
        assert (places.min() >= 0) & (places.max() < 2_000_000)
        assert torch.histc(places.double(), 20).min() > 49_000

    def test_slerp_and_linear_in_blocks(self):
        base, models = tensors((1030, 1024), torch.bfloat16)
        for method in ("slerp", "linear"):
            setting = SETTINGS[method][0]
            merged = [base, models[0], models[1]][: models_of(method_spec(method), setting)]
            assert_equal(*both(method, None, merged, setting), method)


class TestRefusals:
    """Where mergekit stops, or writes NaN because weights sum to zero, we refuse."""

    @pytest.mark.parametrize("method", ["della", "della_linear"])
    @pytest.mark.parametrize("shape", [(5, 1), (1,), ()], ids=str)
    def test_rows_of_one_element_cannot_be_ranked(self, method, shape):
        base, models = tensors(shape, torch.float32)
        theirs, ours = both(method, base, models, SETTINGS[method][0])
        assert isinstance(theirs, Exception)
        assert "rows of one element" in str(ours)

    def test_directions_that_cancel(self):
        x = torch.tensor([1.0, 2.0, -3.0])
        y = torch.tensor([2.0, -1.0, 0.0])
        weight = (1.0, 1.0, 1.0, 1.0)
        models = [x, -x, y, -y]
        theirs, ours = both("multislerp", None, models, {"weight": weight})
        assert isinstance(theirs, ValueError)
        assert "directions that cancel" in str(ours)
        theirs, ours = both("multislerp", None, [x, -x], {"weight": (0.7, 0.7)})
        assert_equal(theirs, ours, "two opposite vectors")
        assert not ours.any()

    def test_weights_that_sum_to_zero(self):
        _, models = tensors((6, 5), torch.float32)
        theirs, ours = both("multislerp", None, models[:2], {"weight": (0.5, -0.5)})
        assert theirs.isnan().any()
        assert "sum to zero" in str(ours)

    def test_linear_weights_that_sum_to_zero_are_not_finite_in_mergekit(self):
        _, models = tensors((6, 5), torch.float32)
        theirs = mergekit_tensor("linear", None, models[:2], {"weight": (0.5, -0.5)})
        assert not theirs.isfinite().any()


def test_no_warning_comes_from_compat():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base, models = tensors((4, 6), torch.float32)
        for method in MERGEKIT_METHODS:
            spec, setting = method_spec(method), SETTINGS[method][0]
            merged = models[: models_of(spec, setting)]
            found = merge_compat(method, base if spec.needs_base else None, merged, parameters_of(method, setting))
            assert found.isfinite().all()


@pytest.mark.parametrize("method", MERGEKIT_METHODS)
def test_the_bits_are_the_same_on_any_number_of_threads(method):
    base, models = tensors((700, 512), torch.bfloat16)
    spec, setting = method_spec(method), SETTINGS[method][0]
    merged = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        given = models[: models_of(spec, setting)]
        merged.append(merge_compat(method, base if spec.needs_base else None, given, parameters_of(method, setting)))
        assert torch.get_num_threads() == threads
    assert agreement(*merged).share == 1


def test_arguments_stay_as_they_are():
    base, models = tensors((6, 8), torch.float32)
    before = [x.clone() for x in (base, *models)]
    for method in MERGEKIT_METHODS:
        spec = method_spec(method)
        for setting in SETTINGS[method]:
            for origin in bases_of(spec, base):
                merged = merge_compat(
                    method, origin, models[: models_of(spec, setting)], parameters_of(method, setting)
                )
                merged.add_(1)
    assert all(torch.equal(x, y) for x, y in zip(before, (base, *models), strict=True))

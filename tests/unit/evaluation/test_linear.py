from __future__ import annotations

import pytest
import torch

from evomerge.evaluation import linear
from evomerge.evaluation.linear import FastLinears, multiply, onednn_pays

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch was built without oneDNN"
)


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_pays", lambda: True)
    monkeypatch.setattr(linear, "_WORTH", 0)


def layer(inputs: int, outputs: int, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(3)
    return torch.nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 17), (5, 17), (3, 40, 17), (1, 1, 17)])
def test_the_product_is_right_to_fp32_rounding(forced: None, bias: bool, shape: tuple[int, ...]) -> None:
    module = layer(17, 29, bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    exact = x.double() @ module.weight.double().T + (module.bias.double() if bias else 0)
    assert multiply(module, x).shape == (*shape[:-1], 29)
    torch.testing.assert_close(multiply(module, x).double(), exact, rtol=1e-5, atol=1e-6)


@needs_onednn
def test_weights_that_change_in_place_are_seen(forced: None) -> None:
    module, x = layer(8, 8), torch.ones(4, 8)
    with FastLinears(module):
        before = module(x)
        module.weight.mul_(2)
        module.bias.mul_(2)
        torch.testing.assert_close(module(x), 2 * before)


@needs_onednn
def test_the_model_is_left_as_it_was(forced: None) -> None:
    model = torch.nn.Sequential(layer(8, 8), torch.nn.ReLU(), layer(8, 4))
    with FastLinears(model):
        assert "forward" in vars(model[0])
    assert all("forward" not in vars(m) for m in model)
    with pytest.raises(ZeroDivisionError, match="division"), FastLinears(model):
        _ = 1 / 0
    assert all("forward" not in vars(m) for m in model)


@needs_onednn
def test_hooks_still_run(forced: None) -> None:
    module, x = layer(6, 3), torch.ones(2, 6)
    handle = module.register_forward_pre_hook(lambda _, arguments: (arguments[0] * 0,))
    with FastLinears(module):
        torch.testing.assert_close(module(x), module.bias.expand(2, 3))
    handle.remove()


def test_other_layers_are_left_alone(forced: None) -> None:
    class Odd(torch.nn.Linear):
        pass

    model = torch.nn.ModuleList([Odd(4, 4), layer(4, 4).to(torch.bfloat16), layer(4, 4)])
    model[2].forward = lambda x: x
    with FastLinears(model):
        assert "forward" not in vars(model[0])
        assert "forward" not in vars(model[1])
        assert model[2](1) == 1
    assert "forward" in vars(model[2])


def test_small_products_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_WORTH", 1 << 60)
    module, x = layer(8, 8), torch.ones(4, 8)
    assert torch.equal(multiply(module, x), module(x))


def test_nothing_is_replaced_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_pays", lambda: False)
    module = layer(8, 8)
    with FastLinears(module):
        assert "forward" not in vars(module)


def test_asking_the_processor_does_not_fail() -> None:
    assert onednn_pays() in (True, False)

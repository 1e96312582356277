"""Values that the papers' authors' own code gives on a small tensor; repositories and commits stand with the tests."""

from __future__ import annotations

import pytest
import torch

from evomerge.merging.methods import Parameters, load_method

SHAPE = (4, 6)
BASE = [
    197, -56, -112, 72, -26, -187, -47, 1, -28, -124, 143, 136, 62, -170, -55, 100, 27, 131, 75, 103, -101, -34, -156,
    86,
]  # fmt: skip
DELTAS = [
    [-68, -56, -183, -152, -155, 29, -88, 124, 5, 34, 7, -162, 119, -187, -8, -124, 55, -115, -83, 97, -186, -195,
    -136, -110],
    [-72, -127, -57, 58, -157, -157, 60, -168, 85, 121, 119, -11, -66, 110, -98, -148, -6, 48, -184, 96, -132, -200,
    101, -37],
    [38, 90, 69, 155, -159, 173, -78, -59, 165, -193, 117, 27, 151, 6, -188, -59, -67, 98, -170, -19, -78, 196, -62,
     -77],
]  # fmt: skip
"""In 2048ths; the base in 1024ths."""


def merged_delta(method, shared=None, tensor="model.layers.0.q.weight", shape=SHAPE, **columns):
    """What the method adds to the base."""
    spec = load_method(method).spec.parameters
    values = {n: p.default for n, p in spec.items() if not p.per_parent} | (shared or {})
    rows = tuple(
        {n: p.default for n, p in spec.items() if p.per_parent} | {n: column[i] for n, column in columns.items()}
        for i in range(3)
    )
    base = torch.tensor(BASE, dtype=torch.float32).view(shape) / 1024
    parents = [base + torch.tensor(d, dtype=torch.float32).view(shape) / 2048 for d in DELTAS]
    merged = load_method(method).merge(base, parents, Parameters(tensor, ("a", "b", "c"), values, rows))
    return (merged - base).reshape(-1)


def test_magmax():
    """danielm1405/magmax@4f49f18, `merge_max_abs`."""
    expected = [
        -72, -127, -183, 155, -159, 173, -88, -168, 165, -193, 119, -162, 151, -187, -188, -148, -67, -115, -184, 97,
        -186, -200, -136, -110,
    ]  # fmt: skip
    assert torch.equal(merged_delta("magmax", {"lambda": 1.0}) * 2048, torch.tensor(expected, dtype=torch.float32))


def test_emr():
    """harveyhuang18/EMR_Merging@cc225ec, the unified vector of `emr_merge`."""
    expected = [
        -72, -127, -183, 155, -159, 173, -88, -168, 165, -193, 119, -162, 151, -187, -188, -148, -67, 98, -184, 97,
        -186, -200, -136, -110,
    ]  # fmt: skip
    assert torch.equal(merged_delta("emr") * 2048, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("strength", "votes", "kept"),
    [
        (0.2, 1, "111111111111111111111111"),
        (0.2, 2, "111111111110111111111111"),
        (0.2, 3, "111111110100100111101110"),
        (0.4, 2, "111111111110111111111111"),
        (0.4, 3, "010111010100000011000110"),
        (1.0, 1, "111101111101111011010110"),
        (1.0, 2, "110101110000100001010110"),
        (1.0, 3, "000000000000000000000000"),
    ],
)
def test_consensus(strength, votes, kept):
    """nik-dim/tall_masks@d10af8b, `generate_task_masks` and the count of `construct_consensus_mask`."""
    mask = torch.tensor([float(c) for c in kept])
    expected = torch.tensor(DELTAS, dtype=torch.float32).sum(0) * mask
    assert torch.equal(merged_delta("consensus", {"strength": strength, "votes": float(votes)}) * 2048, expected)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.05, {14: -0.100976564, 18: -0.080859371, 20: -0.108984381}),
        (
            0.25,
            {2: -0.107226565, 4: -0.082312584, 8: 0.088623047, 11: -0.094921879, 12: 0.081103519, 14: -0.100976564,
             15: -0.065039061, 18: -0.085513808, 20: -0.107148275, 21: -0.096157946},
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("model_wide", [False, True])
def test_pcb(ratio, expected, model_wide):
    """duguodong7/pcb-merging@5897888, `PCB` of pcb_ES.py, its lambdas 1.2, 0.9 and 1.1."""
    dense = torch.tensor([expected.get(i, 0.0) for i in range(24)])
    merged = merged_delta("pcb", {"ratio": ratio, "model_wide": model_wide}, weight=[1.2, 0.9, 1.1])
    torch.testing.assert_close(merged, dense, rtol=1e-6, atol=5e-8)


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.2, [0.0, 0.0, -0.052545186, 0.0, -0.04036364, -0.058201119, 0.0, -0.04036364, 0.0, 0.017837478, 0.0,
               -0.052545186, 0.0, -0.052545186, 0.017837478, 0.0, 0.0, 0.0, -0.022526162, 0.0, -0.052545186,
               -0.110746309, 0.0, 0.0]),
        (0.4, [0.0, -0.04036364, -0.052545186, -0.070382662, -0.07507135, -0.058201119, 0.0, 0.012181547, -0.017837478,
               0.058201119, 0.022526162, -0.052545186, -0.017837478, -0.052545186, 0.017837478, -0.092908829, 0.0, 0.0,
               -0.022526162, 0.0, -0.092908829, -0.110746309, -0.052545186, 0.0]),
    ],
)  # fmt: skip
def test_ternary(density, expected):
    """prateeky2806/ComPEFT@d80ba58, `compress_and_update_parms` with replace factor 1.5; weights 0.7, 0.5 and -0.2.

    Its mask keeps int(density * n) + 1 entries; these densities are such that round(density * n) is as many.
    """
    merged = merged_delta("ternary", weight=[0.7, 0.5, -0.2], density=[density] * 3, alpha=[1.5] * 3)
    torch.testing.assert_close(merged, torch.tensor(expected), rtol=1e-6, atol=5e-8)


def test_binary():
    """FasterDecoding/BitDelta@ecbee1e, the coefficients of `BinaryDiff`; no entry of these deltas vanishes."""
    scales = torch.tensor([0.0504150390625, 0.0491943359375, 0.0507405586540699])
    signs = torch.tensor(DELTAS, dtype=torch.float32).sign()
    expected = (scales[:, None] * torch.tensor([0.5, 0.3, 0.2])[:, None] * signs).sum(0)
    torch.testing.assert_close(merged_delta("binary", weight=[0.5, 0.3, 0.2]), expected, rtol=1e-6, atol=5e-8)


WIDEN = {
    ("model.embed_tokens.weight", 1.0, 1.0): [
        -0.02092642, -0.02037726, -0.02440321, 0.041258, -0.11911088, 0.00813407, -0.03153515, -0.0307782, 0.07604562,
        -0.00997284, 0.07279179, -0.04452037, 0.09677377, -0.07369344, -0.07777202, -0.10046671, 0.00466054,
        -0.01808829, -0.16603629, 0.06926304, -0.1424244, -0.09434044, -0.00921607, -0.07363174],
    ("model.layers.0.q.weight", 1.0, 1.0): [
        -0.04338396, -0.04681747, -0.03853755, 0.04611296, -0.09955455, -0.00862922, -0.023114, -0.02079257,
        0.10828076, -0.0476182, 0.05692509, -0.07854656, 0.05359636, -0.02346778, -0.12441738, -0.11125484,
        -0.01349603, -0.02736387, -0.17094381, 0.05835341, -0.13434717, -0.02417324, -0.02515644, -0.07611294],
    ("model.norm.weight", 1.0, 1.0): [
        -0.01678483, -0.05633114, -0.08738196, 0.01061379, -0.22998047, 0.01232593, -0.01743057, -0.03081687,
        0.09517623, -0.02984226, 0.11633292, -0.0765351, 0.12133387, -0.03666598, -0.10898243, -0.14217609,
        -0.00298838, -0.03245307, -0.18595047, 0.02879158, -0.1676355, -0.09716797, -0.02699602, -0.0721682],
    ("model.embed_tokens.weight", 0.5, 0.3): [
        -0.01481286, -0.01380449, -0.02563855, 0.00553394, -0.0644163, 0.00527047, -0.01341991, -0.01317565,
        0.03246651, -0.00347871, 0.03126347, -0.0195692, 0.02988282, -0.01040038, -0.04306641, -0.04848633,
        -0.00263672, 0.00454101, -0.06180612, 0.02290837, -0.05306077, -0.02396397, -0.01059179, -0.02988682],
    ("lm_head.weight", 0.5, 0.3): [
        -0.01406583, -0.01554307, -0.0211059, 0.0091989, -0.06889237, 0.00638577, -0.01439425, -0.01327304,
        0.03650342, -0.00814065, 0.03552082, -0.02159274, 0.02835056, -0.01030859, -0.04204433, -0.04460445,
        -0.00259383, 0.00266111, -0.06294496, 0.02537, -0.05334131, -0.02366054, -0.01416931, -0.03134463],
    ("model.norm.weight", 0.5, 0.3): [
        -0.01438718, -0.01362304, -0.02504882, 0.00893555, -0.06899414, 0.00685719, -0.01552735, -0.01508789,
        0.03740332, -0.00523289, 0.03566885, -0.02116401, 0.02988282, -0.0103476, -0.04313983, -0.04848633,
        -0.00271697, 0.00517416, -0.06401367, 0.02525656, -0.05800782, -0.02915039, -0.01420899, -0.03330434],
}  # fmt: skip


@pytest.mark.parametrize("case", WIDEN, ids=str)
def test_widen(case):
    """yule-BUAA/MergeLLM@9178ef9, `widen_merging` on an embedding, a projection, a norm and a head of these values."""
    tensor, t, c = case
    shape = (24,) if "norm" in tensor else SHAPE
    merged = merged_delta("widen", {"above_average": t, "score": c}, tensor, shape)
    torch.testing.assert_close(merged, torch.tensor(WIDEN[case]), rtol=1e-5, atol=3e-8)

"""MIG, SAP and DCI: codes whose scores follow from their definition."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from tarspyro import evaluate
from tarspyro.evaluate import disentanglement

FACTORS = torch.cartesian_prod(torch.arange(4), torch.arange(5), torch.arange(3)).repeat(10, 1)


def test_factors_themselves_are_disentangled():
    codes = FACTORS[:, [2, 0, 1]] * torch.tensor([-2.0, 0.1, 30.0]) + 5
    found = disentanglement(codes, FACTORS)
    assert isinstance(found, evaluate.Disentanglement)
    assert found.mig == pytest.approx(1)
    assert found.sap == pytest.approx(1)
    assert found.dci_disentanglement == found.dci_completeness == pytest.approx(1)
    assert found.dci_informativeness == 1
    assert found.importance.argmax(0).tolist() == [1, 2, 0]
    assert found.entropy == pytest.approx(np.log([4, 5, 3]))
    assert repr(found).startswith("MIG 1.000, SAP 1.000, DCI: disentanglement 1.000")


def test_a_copy_of_each_factor_leaves_no_gap_and_is_not_complete():
    codes = torch.cat([FACTORS, FACTORS], 1)
    found = disentanglement(codes, FACTORS)
    assert found.mig == found.sap == pytest.approx(0)
    assert found.dci_disentanglement == pytest.approx(1)  # each copy is of one factor
    # At most the share of a half for each copy: 1 - log 2 / log 6.
    assert found.dci_completeness < 1
    shares = found.importance
    entropy = -np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0).sum(0)
    assert found.dci_completeness == pytest.approx((1 - entropy / math.log(6)).mean())


def test_a_unit_of_two_factors():
    # One unit holds both factors, the other nothing: complete, and not disentangled.
    both = FACTORS[:, 0] * 5 + FACTORS[:, 1]
    codes = torch.stack([both, torch.zeros(len(both))], 1)
    found = disentanglement(codes, FACTORS[:, :2])
    assert found.dci_completeness == pytest.approx(1)
    assert found.dci_disentanglement == pytest.approx(0, abs=1e-6)
    assert found.mig == pytest.approx(1)  # MIG does not mind
    assert found.predictability[1].tolist() == [0, 0]


def test_mutual_information_is_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    noisy = (FACTORS[:, :2] + torch.randint(3, (600, 2), generator=generator)).float()
    found = disentanglement(noisy, FACTORS)
    for u in range(2):
        for k in range(3):
            expected = mutual_info_score(noisy[:, u].long().numpy(), FACTORS[:, k].numpy())
            assert found.mutual_information[u, k] == pytest.approx(expected, abs=1e-9)
    gaps = np.sort(found.mutual_information, 0)
    assert found.mig == pytest.approx(((gaps[-1] - gaps[-2]) / found.entropy).mean())


def test_rotation_takes_mig_and_sap_away():
    centred = FACTORS[:, :2].double() - FACTORS[:, :2].double().mean(0)
    centred = centred / centred.std(0)
    rotated = centred @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    found = disentanglement(rotated, FACTORS[:, :2])
    assert found.sap == pytest.approx(0, abs=1e-9)
    assert found.predictability == pytest.approx(np.full((2, 2), 0.5))
    assert found.dci_informativeness == 1


def test_a_categorical_factor_needs_no_order():
    kinds = torch.arange(3).repeat(100)
    code = torch.tensor([2.0, 7.0, 3.0])[kinds][:, None]  # in another order than the values
    assert disentanglement(code, kinds[:, None]).sap < 0.2
    assert disentanglement(code, kinds[:, None], categorical=[0]).sap == 1


def test_codes_without_information():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(600, 3, generator=generator)
    found = disentanglement(codes, FACTORS, seed=1)
    assert found.mig < 0.05 and found.sap < 0.02 and found.dci_disentanglement < 0.05
    again = disentanglement(codes, FACTORS, seed=1)
    assert again.dci_completeness == found.dci_completeness  # the seed decides
    constant = disentanglement(torch.ones(600, 2), FACTORS)
    assert constant.mig == constant.sap == 0


def test_codes_of_any_shape_and_container():
    codes = np.asarray(FACTORS, dtype=float).reshape(600, 1, 3)
    assert disentanglement(codes, FACTORS.numpy()).mig == pytest.approx(1)
    assert disentanglement(codes.reshape(600, 3)[:, :1], FACTORS[:, :1]).mig == pytest.approx(
        1
    )


def test_factors_whose_values_do_not_repeat_are_refused_and_their_bins_are_not():
    factors = np.random.default_rng(0).uniform(size=(300, 2))
    with pytest.raises(
        ValueError, match=r"column 0 has 300 different ones in 300 rows: divide"
    ):
        disentanglement(factors, factors)
    bins = np.digitize(factors, np.linspace(0, 1, 5))
    assert disentanglement(factors, bins).mig > 0.8


def test_wrong_arguments():
    codes = torch.randn(600, 2)
    with pytest.raises(ValueError, match=r"factors must be of shape \(N, K\).*600 codes"):
        disentanglement(codes, FACTORS[:10])
    with pytest.raises(ValueError, match="factors"):
        disentanglement(codes, FACTORS[:, 0])
    with pytest.raises(ValueError, match="codes must be of shape"):
        disentanglement(codes[:, 0], FACTORS)
    with pytest.raises(ValueError, match="codes must be finite, got 1200"):
        disentanglement(codes * math.nan, FACTORS)
    with pytest.raises(ValueError, match="column 1 has only 2"):
        disentanglement(codes, torch.stack([FACTORS[:, 0], torch.full((600,), 2)], 1))
    with pytest.raises(ValueError, match="categorical must hold columns.*got 3"):
        disentanglement(codes, FACTORS, categorical=[3])
    with pytest.raises(TypeError, match="categorical must hold columns"):
        disentanglement(codes, FACTORS, categorical=0)
    with pytest.raises(ValueError, match="bins"):
        disentanglement(codes, FACTORS, bins=0)

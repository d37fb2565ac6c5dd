"""The comparison with PyTorch, with the same weights."""

import pytest

from scripts import compare_with_torch


@pytest.mark.slow
def test_logits_and_gradients_agree(torch):
    result = compare_with_torch.compare(torch, 3, 0)
    assert result["logits_relative_difference"] < 1e-5
    assert result["gradients_relative_difference"] < 1e-4
    assert len(result["units_switched"]) == 3 and 0 in result["units_switched"]


def test_which_units_are_passed_on(torch):
    signs, places = torch.tensor([[1.0, -1.0]]), torch.arange(9.0).reshape(1, 1, 3, 3)
    assert compare_with_torch.choices(torch, [("activation", signs, signs)]) == []
    steps = [("fc", places, signs), ("pool", places, signs)]
    positive, highest = compare_with_torch.choices(torch, steps)
    assert positive.tolist() == [[True, False]] and highest.tolist() == [[[[8]]]]

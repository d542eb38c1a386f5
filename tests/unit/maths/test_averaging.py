"""The mean of weights: of copies the copy, of linear models the model of the mean score."""

from __future__ import annotations

import pytest
import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.maths.averaging import average_weights
from inverse_alignment.models.folding import STARTED, averaged, weights_digest
from tests.unit.models import tiny


def test_of_copies_it_is_the_copy_and_of_two_models_the_middle():
    model = tiny.weights(tiny.reward_model())
    assert tiny.same(average_weights([model, model, model]), model) and tiny.same(average_weights([model]), model)
    other = {name: weight + 2.0 for name, weight in model.items()}
    for name, weight in average_weights([model, other]).items():
        torch.testing.assert_close(weight, model[name] + 1.0)
        assert weight.dtype == model[name].dtype


def test_the_average_of_linear_models_has_the_average_of_their_scores():
    generator = torch.Generator().manual_seed(0)
    members = [{"w": torch.randn(5, generator=generator)} for _ in range(3)]
    x = torch.randn(7, 5, generator=generator)
    scores = torch.stack([x @ member["w"] for member in members]).mean(0)
    torch.testing.assert_close(x @ average_weights(members)["w"], scores)


def test_what_has_no_average_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        average_weights([])
    for other in ({"w": torch.zeros(3)}, {"v": torch.zeros(2)}, {}):
        with pytest.raises(ValueError, match="different shapes"):
            average_weights([{"w": torch.zeros(2)}, other])


def test_models_with_different_starts_are_refused(tmp_path):
    folders = []
    for seed in (0, 1):
        model = tiny.reward_model(seed)
        folders.append(tiny.saved(model, tmp_path / str(seed)))
        (folders[-1] / STARTED).write_text(weights_digest(model))
    with pytest.raises(UserError, match="different starts"):
        averaged(folders)
    (folders[1] / STARTED).write_text((folders[0] / STARTED).read_text())
    expected = average_weights([tiny.weights(tiny.reward_model(seed)) for seed in (0, 1)])
    assert tiny.same(averaged(folders), expected)

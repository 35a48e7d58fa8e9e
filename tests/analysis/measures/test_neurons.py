"""Scores of neurons by hand: means over the images that have such patches, and nothing where none has."""

import numpy as np
import pytest

from vit_registers.analysis.measures.neurons import neuron_scores

NEURONS = np.array([[[[4.0]], [[0.0]]], [[[2.0]], [[6.0]]], [[[0.0]], [[100.0]]]])  # Bx2xLxF
HAS_OUTLIER = np.array([True, True, False])


@pytest.mark.parametrize(
    ("has_other", "others"),
    [([False, True, True], 6.0), ([True, True, True], 3.0), ([False, False, True], None)],
)
def test_images_without_such_patches_are_left_out(has_other, others):
    score, found = neuron_scores(NEURONS, HAS_OUTLIER, np.array(has_other))
    assert score.item() == 3.0
    assert (None if found is None else found.item()) == others

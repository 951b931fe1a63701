"""Data sets made from the digits of scikit-learn: several labels, numbers, and masks."""

from __future__ import annotations

import numpy as np
import pytest

from clbench.data import digit_masks
from clbench.data.digit_masks import STYLES, DigitMasks, placed
from clbench.data.digit_tasks import DigitMass, TwoDigits, quadrant_shares
from clbench.data.toy import Digits
from clbench.errors import ConfigError

PARTS = pytest.mark.parametrize("train", [True, False])


@PARTS
def test_the_labels_are_the_two_digits_of_the_image(train):
    """Each half is an image of the same part of Digits, so training and test images have no digit in common."""
    pairs, digits = TwoDigits(train=train), Digits(train=train)
    labels: dict[bytes, set[int]] = {}
    for image, label in zip(digits.data, digits.targets, strict=True):
        labels.setdefault(image.tobytes(), set()).add(label)
    assert pairs.data.shape == (len(pairs), 8, 16) and len(pairs) == (4000 if train else 1000)
    assert pairs.data.dtype == pairs.targets.dtype == np.uint8
    for image, target in zip(pairs.data[:200], pairs.targets, strict=False):
        left, right = (labels[half.tobytes()] for half in (image[:, :8], image[:, 8:]))
        assert set(target.nonzero()[0]) == left | right


def test_every_digit_occurs_about_equally_often():
    shares = TwoDigits().targets.mean(0)
    assert (abs(shares - (1 - 0.9**2)) < 0.03).all()


@PARTS
def test_the_mass_of_each_quadrant_equals_the_loop(train):
    images = Digits(train=train).data
    shares = quadrant_shares(images)
    for image, share in zip(images[:20], shares, strict=False):
        corners = [image[:4, :4], image[:4, 4:], image[4:, :4], image[4:, 4:]]
        np.testing.assert_allclose(share, [corner.sum() / image.sum() for corner in corners])


def test_the_mass_is_standardised_by_the_training_set():
    train, test = DigitMass(), DigitMass(train=False)
    assert train.targets.dtype == np.float32 and train.targets.shape == (1437, 4)
    np.testing.assert_allclose(train.targets.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.targets.std(0), 1, rtol=1e-5)
    reference = quadrant_shares(train.data)
    back = test.targets * reference.std(0) + reference.mean(0)
    np.testing.assert_allclose(back, quadrant_shares(test.data), atol=1e-6)


@PARTS
def test_the_styles_have_the_same_masks_and_other_images(train):
    sources = [source(train=train) for source in digit_masks()]
    for source in sources:
        assert source.outputs == 2 and len(source) == len(Digits(train=train))
        assert source.data.shape == source.targets.shape == (len(source), 12, 12)
        assert source.data.dtype == np.uint8 and source.targets.dtype == np.int64
        assert source.data.max() <= 16 and set(np.unique(source.targets)) == {0, 1}
        assert (source.targets == sources[0].targets).all()
    for i, source in enumerate(sources):
        assert all((source.data != other.data).any() for other in sources[:i])


def test_a_mask_is_the_bright_pixels_of_the_digit():
    plain = DigitMasks("plain")
    assert ((plain.data >= 8) == plain.targets).all()
    assert sorted(plain.data.sum((1, 2))) == sorted(Digits().data.sum((1, 2)))


def test_digits_are_placed_at_every_offset():
    canvas = placed(np.full((500, 8, 8), 3), np.random.default_rng(0))
    corners = {tuple(np.argwhere(image)[0]) for image in canvas}
    assert corners == {(top, left) for top in range(5) for left in range(5)}
    assert (canvas.sum((1, 2)) == 3 * 64).all()


@pytest.mark.parametrize("make", [TwoDigits, DigitMass, *(lambda s=style: DigitMasks(s) for style in STYLES)])
def test_a_data_set_is_the_same_each_time(make):
    first, second = make(), make()
    assert (first.data == second.data).all() and (first.targets == second.targets).all()


def test_an_unknown_style_is_one_line():
    known = "plain, inverted, striped, noisy, gradient"
    for call, message in (
        (lambda: DigitMasks("dotted"), f"style=dotted: expected one of {known}, got 'dotted'"),
        (lambda: digit_masks([]), rf"styles=\[\]: expected a list with at least one of {known}"),
        (lambda: digit_masks("plain"), "styles=plain: expected a list"),
        (lambda: digit_masks(["plain", "dotted"]), r"styles=\['plain', 'dotted'\]: expected a list"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()

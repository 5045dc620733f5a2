import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientsam3.evaluate.masks.comparison import compare, interval, resampled_means
from efficientsam3.evaluate.masks.scores import ObjectScore
from efficientsam3.evaluate.report.score_tables import score_tables


def scores(ious: dict[str, dict[str, list[float]]]) -> list[ObjectScore]:
    """By model, by image, of each object."""
    return [
        ObjectScore(model, image, number, "box", 2000, iou, 0.5, 0.9)
        for model, images in ious.items()
        for image, of_image in images.items()
        for number, iou in enumerate(of_image)
    ]


GIVEN = scores(
    {
        "teacher": {"a": [0.9, 0.7], "b": [0.8]},
        "student": {"a": [0.6, 0.6], "b": [0.6]},
        "zeros": {"a": [0.4, 0.4], "b": [0.4]},
    }
)


def test_shares_by_hand() -> None:
    (teacher, student, zeros), differences = compare(GIVEN, ["teacher", "student", "zeros"], ["box"], "zeros")
    assert (teacher.share, teacher.share_interval, teacher.from_zeros) == (1, None, 1)
    assert student.share == pytest.approx(0.75)
    assert student.from_zeros == pytest.approx(0.5)
    assert zeros.share == pytest.approx(0.5)
    assert zeros.from_zeros == 0
    # Every image's mean is 0.8 for the teacher, and every object's is 0.6 for the student: nothing varies.
    assert student.interval == pytest.approx((0.6, 0.6))
    assert student.share_interval == pytest.approx((0.75, 0.75))
    found = {(row.model, row.other): row.difference for row in differences}
    assert found == {
        ("student", "teacher"): pytest.approx(-0.2),
        ("zeros", "teacher"): pytest.approx(-0.4),
        ("zeros", "student"): pytest.approx(-0.2),
    }
    first, second = score_tables([teacher, student, zeros], 2)
    assert first.rows[1] == ["student", "box", "75.0 % (75 to 75)", "0.600 (0.60 to 0.60)", "50.0 %"]
    assert second.rows[1] == ["student", "box", "3", "-", "0.600", "-", "0.500"]


def test_one_image_says_nothing_of_others_and_a_teacher_without_masks_has_no_shares() -> None:
    (first, second), (difference,) = compare(
        scores({"a": {"one": [0.0]}, "b": {"one": [0.5]}}), ["a", "b"], ["box", "point"][:1]
    )
    assert (first.interval, second.interval, difference.interval) == (None, None, None)
    assert (second.share, second.from_zeros) == (None, None)
    assert compare(GIVEN, ["teacher"], ["point"])[0][0].objects == 0


def test_differences_are_paired() -> None:
    """Images differ a lot, models by little: the difference is sure although neither mean is."""
    hard = [0.1, 0.3, 0.5, 0.7, 0.9] * 4
    better = [value + 0.02 for value in hard]
    given = {name: {str(place): [iou] for place, iou in enumerate(ious)} for name, ious in (("a", hard), ("b", better))}
    (_, b), (difference,) = compare(scores(given), ["a", "b"], ["box"])
    assert b.interval is not None
    assert b.interval[1] - b.interval[0] > 0.2
    assert difference.interval == pytest.approx((0.02, 0.02))


def test_intervals_of_many_images_are_those_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).beta(2, 1, 200)
    drawn = resampled_means(values[None], np.ones(200), seed=1)
    error = values.std() / 200**0.5
    assert drawn.shape == (1, 2000)
    assert drawn.std() == pytest.approx(error, rel=0.05)
    found = values.mean() - 1.96 * error, values.mean() + 1.96 * error
    assert interval(drawn[0]) == pytest.approx(found, abs=0.2 * error)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 5)), min_size=2, max_size=40), st.integers(0, 100))
def test_every_object_counts_the_same_in_resampled_means(images: list[tuple[float, int]], seed: int) -> None:
    values, counts = (np.array(column, dtype=float) for column in zip(*images, strict=True))
    sums = np.stack([values * counts, counts])
    drawn = resampled_means(sums, counts, seed, samples=200)
    assert (drawn == resampled_means(sums, counts, seed, samples=200)).all(), "seeded"
    assert (drawn[1] == 1).all()
    assert values.min() - 1e-9 <= drawn[0].min() <= drawn[0].max() <= values.max() + 1e-9

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.predict.places import check_places, plan_places, remove_stale_masks
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.own_files import write_own_text

_OUT = Path("out")


def _records(*images: str) -> list[str]:
    return [str(place.record.relative_to(_OUT)) for place in plan_places(map(Path, images), _OUT).values()]


@pytest.mark.parametrize(
    ("images", "records"),
    [
        (["in/a.jpg", "in/b.png"], ["a.json", "b.json"]),
        (["in/a.jpg", "in/a.png"], ["a.jpg.json", "a.png.json"]),
        (["in/a.jpg", "in/a.png", "in/a.jpg.png"], ["a.jpg.json", "a.png.json", "a.jpg.png.json"]),
        (["v1/f.jpg", "v2/f.jpg"], ["v1/f.json", "v2/f.json"]),
        (["/x/v1/f.jpg", "/x/f.jpg"], ["v1/f.json", "f.json"]),
        (["in/a.jpg", "in/../in/a.jpg", "./in/a.jpg"], ["a.json"]),
        ([], []),
    ],
)
def test_answers_lie_as_the_images_do(images: list[str], records: list[str]) -> None:
    assert _records(*images) == records


_names = st.sampled_from(["a", "b", "a.jpg", "a_overlay", "a_mask_000", "a.json"])
_images = st.tuples(st.sampled_from(["", "v1/", "v1/v2/"]), _names, st.sampled_from([".jpg", ".png", ".jpg.png"]))


@given(st.sets(_images.map("".join)))
def test_no_two_images_share_a_file(images: set[str]) -> None:
    places = plan_places(map(Path, sorted(images)), _OUT).values()
    files = [file for place in places for file in (place.record, place.overlay, *map(place.mask, range(3)))]
    assert len(places) == len(images)
    assert len(set(files)) == len(files)


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(UserError, match="too long a name"):
        _records("a" * 250 + ".jpg")


@pytest.mark.parametrize("name", ["a.json", "a_overlay.png", "a_mask_000.png", "a_mask_1234.png"])
def test_what_is_in_the_way_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "a_mask_01.png").write_text("nobody writes this")
    with pytest.raises(UserError, match=f"would replace {tmp_path / name}, which efficientsam3 did not write"):
        check_places(plan_places([Path("in/a.jpg")], tmp_path).values())
    check_places(plan_places([Path("in/b.jpg")], tmp_path).values())


def test_answers_for_another_image_stay(tmp_path: Path) -> None:
    (place,) = plan_places([Path("/v1/a.jpg")], tmp_path).values()
    write_own_text(place.record, "{}", place.whole)
    check_places([place])
    with pytest.raises(UserError, match=r"a\.json, which is part of the answers for /v1/a\.jpg"):
        check_places(plan_places([Path("/v2/a.jpg")], tmp_path).values())


def test_stale_masks_are_removed_but_not_the_users(tmp_path: Path) -> None:
    (place,) = plan_places([Path("/v1/a.jpg")], tmp_path).values()
    for number in range(4):
        write_own_text(place.mask(number), str(number), place.whole)
    place.mask(2).write_text("mine")
    remove_stale_masks(place, 1)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a_mask_000.png", "a_mask_002.png"]

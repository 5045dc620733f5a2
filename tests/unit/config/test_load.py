import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.config.load import load_config, parse_opts, read_yaml
from efficientsam3.config.schema import ExportConfig, TrainConfig
from efficientsam3.config.text import TextTrainConfig
from efficientsam3.models.students import STUDENTS
from efficientsam3.models.text_students import TEXT_STUDENTS
from efficientsam3.runtime.errors import UserError

CONFIGS = Path(__file__).parents[3] / "stage1" / "configs"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", STUDENTS)
def test_every_shipped_student_loads(name: str) -> None:
    config = load_config(TrainConfig, CONFIGS / f"{name}.yaml")
    assert STUDENTS[name].backbone == config.MODEL.BACKBONE
    assert config.output_dir == Path("output/stage1") / name
    assert {config.DATA.IMG_SIZE, config.DISTILL.EMBED_SIZE, config.DISTILL.EMBED_DIM} == {"teacher"}
    assert (30 if name == "es_rv_m" else 50) == config.TRAIN.EPOCHS
    assert config.MODEL.PRETRAINED is True


@pytest.mark.parametrize("name", STUDENTS)
def test_the_published_recipe_is_what_shipped_students_had_before_they_had_another(name: str) -> None:
    """tests/data/published.json is what commit 4a4a0aa made of the nine files; keys that came later may be added."""
    before = json.loads((CONFIGS.parents[1] / "tests" / "data" / "published.json").read_text())
    found = dict(flat(load_config(TrainConfig, CONFIGS / "published" / f"{name}.yaml").model_dump(mode="json")))
    expected = before["common"] | before["own"][name]
    assert {key: found[key] for key in expected} == expected
    now = dict(flat(load_config(TrainConfig, CONFIGS / f"{name}.yaml").model_dump(mode="json")))
    recipe = {"DISTILL.NORMALIZE": "channel", "TRAIN.LR_SCALING": "steps"}
    assert {key: value for key, value in now.items() if value != found[key]} == recipe


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_shipped_teacher_loads() -> None:
    config = load_config(ExportConfig, CONFIGS / "teacher" / "sam_vit_huge_sa1b.yaml")
    assert Path("sam3_checkpoints/sam3.pt") == config.MODEL.RESUME
    assert config.output_dir == Path("output/stage1_teacher")


def test_every_shipped_file_names_a_command_that_uses_it_and_is_loaded_by_a_test() -> None:
    shipped = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")}
    students = {f"{folder}{name}.yaml" for name in STUDENTS for folder in ("", "published/")}
    runnable = students | {"teacher/sam_vit_huge_sa1b.yaml"}
    texts = {f"text/es_mc_{size}.yaml": backbone for size, backbone in zip("sml", TEXT_STUDENTS, strict=True)}
    assert shipped == runnable | {"base_stage1.yaml", "published/recipe.yaml", "text/base_text.yaml", *texts}
    for name in runnable:
        assert f"CFG=stage1/configs/{name}" in (CONFIGS / name).read_text().splitlines()[0]
    for name, backbone in texts.items():
        assert f"text train --cfg stage1/configs/{name}" in (CONFIGS / name).read_text().splitlines()[0]
        config = load_config(TextTrainConfig, CONFIGS / name)
        assert (backbone, 100) == (config.MODEL.BACKBONE, config.TRAIN.EPOCHS)


def test_precedence(tmp_path: Path) -> None:
    write(tmp_path / "lower.yaml", "SEED: 1\nPRINT_FREQ: 1\nTAG: lower\nDATA: {BATCH_SIZE: 1, NUM_WORKERS: 1}\n")
    path = write(tmp_path / "upper.yaml", "BASE: lower.yaml\nPRINT_FREQ: 2\nTAG: upper\nDATA: {BATCH_SIZE: 2}\n")
    config = load_config(
        ExportConfig, path, ["TAG", "opts", "DATA.BATCH_SIZE", "3"], {"DATA.BATCH_SIZE": 4, "SEED": None}
    )
    assert (config.SEED, config.PRINT_FREQ, config.TAG) == (1, 2, "opts")
    assert (config.DATA.BATCH_SIZE, config.DATA.NUM_WORKERS) == (4, 1)


def test_yaml_reads_1e_3_as_a_string_and_the_schema_as_a_number(tmp_path: Path) -> None:
    assert yaml.safe_load("1e-3") == "1e-3"
    path = write(tmp_path / "c.yaml", "MODEL: {BACKBONE: repvit_m0_9}\nTRAIN: {BASE_LR: 1e-3}\n")
    assert load_config(TrainConfig, path, ["TRAIN.MIN_LR", "1e-6"]).TRAIN.MIN_LR == 1e-6


def test_all_errors_are_reported_at_once_with_their_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "TRAIN: {BASE_LRR: 1}\nDATA: {IMG_SIZE: many, STD: [1, 2]}\nFROBNICATE: 1\n")
    with pytest.raises(UserError) as caught:
        load_config(TrainConfig, path)
    message = str(caught.value)
    assert "TRAIN.BASE_LRR not a key, did you mean TRAIN.BASE_LR" in message
    assert "DATA.IMG_SIZE 'many'" in message
    assert "DATA.STD" in message
    assert "FROBNICATE not a key" in message
    assert "MODEL" in message


WEIGHTLESS = ["DISTILL.MASKS.DECODER", "sam.onnx", "DISTILL.MASKS.WEIGHT", "0"]


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["DISTILL.PIXEL_WISE", "0", "DISTILL.COSINE", "0"], "PIXEL_WISE and COSINE"),
        (["DISTILL.PIXEL_WISE", "0", "DISTILL.COSINE", "0", *WEIGHTLESS], "PIXEL_WISE and COSINE"),
        (["TRAIN.EPOCHS", "3"], "WARMUP_EPOCHS 5"),
        (["TRAIN.MIN_LR", "1"], "MIN_LR 1.0"),
        (["TRAIN.BASE_LR", ".nan"], "TRAIN.BASE_LR"),
        (["DATA.STD", "[0, 1, 1]"], "DATA.STD"),
        (["TAG", "a/b"], "TAG"),
        (["TAG", ".."], "TAG .. is not a subfolder of OUTPUT"),
        (["TAG", "."], "TAG . is not a subfolder"),
        (["MODEL.NAME", "../../x"], "leads out of the default folder"),
        (["OUTPUT", "x" * 300], "OUTPUT is not a possible path"),
        (["OUTPUT", '"a\\0b"'], "OUTPUT is not a possible path"),
        (["SEED", "[" * 30], "SEED: '[[["),
        (["SEED"], "SEED"),
        (["DATA.IMG_SIZE.X", "1"], "IMG_SIZE"),
        (["SEED", "["], "SEED"),
        (["MODEL.PRETRAINED", "[1]"], "MODEL.PRETRAINED"),
    ],
)
def test_wrong_values_are_refused(opts: list[str], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        load_config(TrainConfig, CONFIGS / "es_rv_m.yaml", opts)


def test_keys_that_a_command_would_not_read_do_not_exist_for_it() -> None:
    with pytest.raises(UserError, match="TRAIN not a key"):
        load_config(ExportConfig, CONFIGS / "teacher" / "sam_vit_huge_sa1b.yaml", ["TRAIN.EPOCHS", "3"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "list"),
        ("BASE: c.yaml", "its own BASE"),
        ("BASE: 5", "BASE 5 is neither"),
        ("BASE: [1]", "BASE"),
        ("BASE:", "BASE None"),
        ("BASE: {a: b}", "BASE"),
        ("BASE: " + "x" * 300, "not a possible path"),
        ('BASE: "a\\0b"', "is not a file"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        read_yaml(write(tmp_path / "c.yaml", text))


def test_files_that_build_on_ever_more_files_are_refused(tmp_path: Path) -> None:
    for level in range(60):
        write(tmp_path / f"chain{level}.yaml", f"BASE: chain{level + 1}.yaml")
        write(tmp_path / f"tree{level}.yaml", f"BASE: [tree{level + 1}.yaml, tree{level + 1}.yaml]")
    for name in ("chain0.yaml", "tree0.yaml"):
        with pytest.raises(UserError, match="more than 50 files"):
            read_yaml(tmp_path / name)


def test_what_an_alias_repeats_is_set_in_one_place_only(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "DISTILL: {AUGMENT: &same {HFLIP: 0.1}}\nDATA: {AUGMENT: *same}\n")
    write(tmp_path / "upper.yaml", "BASE: c.yaml\nDATA: {AUGMENT: {HFLIP: 0.3}}")
    assert read_yaml(tmp_path / "upper.yaml")["DISTILL"] == {"AUGMENT": {"HFLIP": 0.1}}
    assert read_yaml(path)["DATA"] == {"AUGMENT": {"HFLIP": 0.1}}


def test_a_date_may_name_a_folder() -> None:
    config = load_config(TrainConfig, CONFIGS / "es_rv_m.yaml", ["OUTPUT", "2024-13-45"])
    assert Path("2024-13-45") == config.OUTPUT


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml is not a file"):
        read_yaml(tmp_path / "absent.yaml")


@given(st.lists(st.text(max_size=12), max_size=6))
def test_any_opts_either_parse_or_are_refused(opts: list[str]) -> None:
    try:
        pairs = list(parse_opts(opts))
    except UserError:
        return
    assert [key for key, _ in pairs] == opts[::2]

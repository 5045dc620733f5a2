"""Flags, help and refusals come from the typed requests."""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

import efficientsam3.commands
from efficientsam3.cli import COMMANDS, main
from efficientsam3.commands.arguments import add_arguments
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.request import Argument, Count, File, OneOf, Request, flag_name, make_request

TABLE = {"round": 1, "square": 2}


class ToyRequest(Request):
    """Every kind of field."""

    model: Annotated[Path, Argument("MODEL", positional=True)] = Field(description="what to use")
    links: File = Field(description="where from, at 10 %")
    number: Count = Field(4, description="how many")
    shape: Annotated[str, OneOf(TABLE)] = Field("round", description="which form")
    kinds: list[Literal["a", "b"]] = Field(["a"], description="several at once")
    phrase: Annotated[list[str], Argument("PHRASE", action="append")] = Field([], description="one at a time")
    box: Annotated[list[tuple[float, float]], Argument(("X", "Y"), action="append")] = Field([], description="pairs")
    opts: Annotated[list[str], Argument("KEY VALUE", action="extend")] = Field([], description="keys and values")
    dry_run: Annotated[int | None, Argument("N", const=1)] = Field(None, description="check only")
    images: Annotated[Path | None, Argument("DIR", aliases=("--pictures",))] = Field(None, description="of what")
    fix: bool = Field(False, description="repair")
    mode: Annotated[Literal["move", "copy"] | None, Argument(flags={"move": "take", "copy": "double"})] = Field(
        None, description="how"
    )


def parse(*arguments: str) -> ToyRequest:
    parser = argparse.ArgumentParser()
    add_arguments(parser, ToyRequest)
    return make_request(ToyRequest, vars(parser.parse_args(["m.pt", "--links", "l.txt", *arguments])))


def test_what_is_not_given_is_the_requests_default() -> None:
    assert parse() == ToyRequest(model=Path("m.pt"), links=Path("l.txt"))


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ("--number 7", "number", 7),
        ("--shape square", "shape", "square"),
        ("--kinds b a", "kinds", ["b", "a"]),
        ("--phrase dog --phrase cat", "phrase", ["dog", "cat"]),
        ("--box 1 2.5 --box 3 4", "box", [(1, 2.5), (3, 4)]),
        ("--opts A 1 --opts B 2", "opts", ["A", "1", "B", "2"]),
        ("--dry-run", "dry_run", 1),
        ("--dry-run 8", "dry_run", 8),
        ("--pictures here", "images", Path("here")),
        ("--images here", "images", Path("here")),
        ("--fix", "fix", True),
        ("--copy", "mode", "copy"),
    ],
)
def test_each_form_of_flag(arguments: str, field: str, value: object) -> None:
    assert getattr(parse(*arguments.split()), field) == value


@pytest.mark.parametrize("arguments", ["--shape flat", "--kinds c", "--box 1", "--move --copy", "--nothing"])
def test_what_argparse_refuses_is_code_2(arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*arguments.split())
    assert stop.value.code == 2


def test_wrong_values_are_named_at_once_by_their_flags() -> None:
    with pytest.raises(UserError) as refused:
        parse("--number", "0", "--dry-run", "many")
    message = str(refused.value)
    assert message.startswith("--number 0: should be greater than or equal to 1; --dry-run many: should be a valid int")
    assert message.endswith(".")


def test_help_has_descriptions_and_defaults_and_no_former_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    parser = argparse.ArgumentParser()
    add_arguments(parser, ToyRequest)
    text = parser.format_help()
    for expected in (
        *("where from, at 10 %", "how many (default: 4)", "several at once (default: a)", "{round,square}"),
        *("--box X Y", "--dry-run [N]", "double"),
    ):
        assert expected in text
    assert "--pictures" not in text
    assert "one at a time\n" in text


def test_an_entry_that_is_added_to_a_table_is_offered_and_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "flat", 3)
    assert parse("--shape", "flat").shape == "flat"


def requests() -> Iterator[tuple[list[str], type[Request]]]:
    for command in COMMANDS:
        module = importlib.import_module(f"efficientsam3.commands.{command.replace('-', '_')}")
        if hasattr(module, "ACTIONS"):
            yield from (([command, action], request) for action, (request, _) in module.ACTIONS.items())
        else:
            yield [command], module.REQUEST


@pytest.mark.parametrize(("command", "request_type"), list(requests()), ids=str)
def test_help_mentions_every_field_of_the_request(
    command: list[str],
    request_type: type[Request],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    text = capsys.readouterr().out
    for name, field in request_type.model_fields.items():
        argument = next((item for item in field.metadata if isinstance(item, Argument)), Argument())
        if argument.flags is None:
            assert field.description in text
            assert (argument.positional and str(argument.metavar) in text) or flag_name(name) in text
        else:
            assert all(f"{flag_name(flag)}  " in text and meaning in text for flag, meaning in argument.flags.items())


def test_descriptions_are_written_once() -> None:
    """Each text belongs to one field, which other requests inherit or share; commands write no help of their own."""
    owners: dict[str, str] = {}
    for _, request in requests():
        for name, field in request.model_fields.items():
            text = str(field.description)
            # A request's own fields that share a type also share what the type says of them.
            assert owners.setdefault(text, name) == name, text
    for path in Path(efficientsam3.commands.__file__).parent.glob("*.py"):
        if path.stem != "arguments":
            assert "add_argument" not in path.read_text()


def test_help_imports_no_pytorch() -> None:
    code = (
        "import importlib, sys; from efficientsam3.cli import COMMANDS\n"
        "for name in COMMANDS: importlib.import_module('efficientsam3.commands.' + name.replace('-', '_'))\n"
        "print({'torch', 'transformers', 'onnxruntime'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

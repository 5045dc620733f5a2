"""From a typed request to the flags of a command, and back."""

import argparse
import re
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from efficientsam3.config.load import load_config
from efficientsam3.config.schema import TrainConfig
from efficientsam3.runtime.request import Argument, Count, File, Folder, OneOf, Request, flag_name, make_request

Config = TypeVar("Config", bound=BaseModel)


def add_arguments(parser: argparse.ArgumentParser, request: type[Request]) -> None:
    """Add a flag, or a positional argument, for each field of a request.

    Values stay texts, which the request converts and checks; what is not given is left to the request's default.
    """
    for name, field in request.model_fields.items():
        annotation, metadata = _unwrap(field.annotation)
        metadata = [*field.metadata, *metadata]
        argument = next((item for item in metadata if isinstance(item, Argument)), Argument())
        if argument.flags is not None:
            group = parser.add_mutually_exclusive_group()
            for value, text in argument.flags.items():
                group.add_argument(
                    flag_name(value), dest=name, action="store_const", const=value, default=argparse.SUPPRESS, help=text
                )
            continue
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
        if annotation is bool:
            options["action"] = "store_true"
        else:
            options |= _value_options(annotation, metadata, argument)
        if argument.positional:
            parser.add_argument(name, **options)
            continue
        parser.add_argument(flag_name(name), dest=name, required=field.is_required(), **options)
        if argument.aliases:
            # Known to argparse, and in neither the usage nor the help.
            parser.add_argument(*argument.aliases, dest=name, **{**options, "help": argparse.SUPPRESS})


def fill_parser(parser: argparse.ArgumentParser, command: types.ModuleType) -> None:
    """Give a command's parser its arguments.

    Args:
        parser: of the command.
        command: has either REQUEST and `run`, or ACTIONS: for each action its request and its function, whose docstring
            describes it.
    """
    parser.epilog = getattr(command, "EPILOG", None)
    if not hasattr(command, "ACTIONS"):
        add_arguments(parser, command.REQUEST)
        parser.set_defaults(_request=command.REQUEST, _run=command.run)
        return
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, (request, run) in command.ACTIONS.items():
        summary = run.__doc__.splitlines()[0].rstrip(".")
        action = actions.add_parser(name, help=f"{summary[0].lower()}{summary[1:]}", description=f"{summary}.")
        add_arguments(action, request)
        action.set_defaults(_request=request, _run=run)


def run_request(args: argparse.Namespace) -> None:
    """Make the request of a command line, and do what it asks for.

    Raises:
        UserError: a value is wrong; all of them are named at once. Or whatever the command refuses.
    """
    request: type[Request] = args._request
    args._run(
        make_request(request, {name: value for name, value in vars(args).items() if name in request.model_fields})
    )


def _value_options(annotation: Any, metadata: Sequence[Any], argument: Argument) -> dict[str, Any]:
    options: dict[str, Any] = {"metavar": argument.metavar}
    if get_origin(annotation) is tuple and get_args(annotation)[-1] is not Ellipsis:
        options["nargs"] = len(get_args(annotation))
    elif get_origin(annotation) in (list, tuple):
        item, below = _unwrap(get_args(annotation)[0])
        options |= _value_options(item, below, argument)
        if argument.action in ("store", "extend"):
            options["nargs"] = "+"
        if argument.action in ("append", "extend"):
            options["action"] = argument.action
    elif get_origin(annotation) is Literal:
        options["choices"] = get_args(annotation)
    else:
        tables = [item.table for item in metadata if isinstance(item, OneOf)]
        options |= {"choices": tuple(tables[0])} if tables else {}
    if argument.const is not None:
        options |= {"nargs": "?", "const": argument.const}
    return options


def _unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """A type without `Annotated` and `None`, and the metadata that they had."""
    if get_origin(annotation) is Annotated:
        inner, metadata = _unwrap(get_args(annotation)[0])
        return inner, [*annotation.__metadata__, *metadata]
    if get_origin(annotation) in (Union, types.UnionType):
        first, *others = (part for part in get_args(annotation) if part is not types.NoneType)
        assert not others, f"a command line cannot tell the alternatives of {annotation} apart"
        return _unwrap(first)
    return annotation, []


def _help(field: FieldInfo) -> str:
    text = field.description
    assert text, "each field of a request is described"
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if default not in (None, False, "", [], ()) and not re.search(r"by default|, the default|default:", text):
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
        text = f"{text} (default: {shown})"
    return text.replace("%", "%%")


def config_key(key: str, value: Any = None, schema: type[BaseModel] = TrainConfig) -> Any:
    """A field that overrides a configuration key, whose description in the schema is its help.

    Args:
        key: dotted.
        value: what a flag without a value sets.
        schema: root of the configuration.
    """
    *parents, leaf = key.split(".")
    for parent in parents:
        section = schema.model_fields[parent].annotation
        assert isinstance(section, type)
        schema = section
    set_to = "" if value is None else f" {str(value).lower()}"
    description = f"{key}{set_to}: {schema.model_fields[leaf].description}"
    return Field(None, description=description, json_schema_extra={"key": key, "value": value})


class SettingsRequest(Request):
    """A YAML configuration, and flags that override its keys. A flag that is not given changes nothing."""

    cfg: File = Field(description="YAML configuration, see stage1/configs/")
    opts: Annotated[list[str], Argument("KEY VALUE", action="extend")] = Field(
        [], description="set any configuration key, e.g. --opts DATA.NUM_SAMPLES 100 SEED 1"
    )

    def overrides(self) -> Iterator[tuple[str, Any]]:
        """Dotted key and value of each flag that was given."""
        for name, field in type(self).model_fields.items():
            extra, value = field.json_schema_extra, getattr(self, name)
            if isinstance(extra, dict) and value is not None:
                yield str(extra["key"]), extra["value"] if value is True else value


class ConfiguredRequest(SettingsRequest):
    """Also what trainings and embedding runs on images have in common."""

    data_path: Folder | None = config_key("DATA.DATA_PATH")
    output: Folder | None = config_key("OUTPUT")
    tag: Annotated[str | None, Argument("NAME")] = config_key("TAG")
    batch_size: Count | None = config_key("DATA.BATCH_SIZE")
    disable_amp: bool | None = config_key("AMP_ENABLE", False)
    only_cpu: bool | None = config_key("DEVICE", "cpu")
    dry_run: Annotated[Count | None, Argument("PROCESSES", const=1)] = Field(
        None,
        description="check the configuration and everything it names, for that many processes on this machine, then "
        "stop",
    )


class StepRequest(ConfiguredRequest):
    """Also how a training starts and takes its steps."""

    pretrained: Annotated[str | None, Argument("WHAT")] = config_key("MODEL.PRETRAINED")
    accumulation_steps: Count | None = config_key("TRAIN.ACCUMULATION_STEPS")
    use_checkpoint: bool | None = config_key("TRAIN.USE_CHECKPOINT", True)
    use_sync_bn: bool | None = config_key("TRAIN.USE_SYNC_BN", True)
    compile: bool | None = config_key("TRAIN.COMPILE", True)
    compile_teacher: bool | None = config_key("TEACHER.COMPILE", True)


def read_config(schema: type[Config], request: SettingsRequest) -> Config:
    """Load the configuration that a request names, with its overrides.

    Raises:
        UserError: a file is missing or not YAML, or any key or value is wrong; all of them are named at once.
    """
    return load_config(schema, request.cfg, request.opts, dict(request.overrides()))

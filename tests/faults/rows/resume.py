"""Training checkpoints that a training is to continue from."""

from collections.abc import Callable
from typing import Any

from faults.fault import Fault, Place, refused
from faults.rows.weights import edit

_LAST, _FIRST = "ckpt_epoch_1.pth", "ckpt_epoch_0.pth"


def _alone(change: Callable[[dict[str, Any]], None]) -> Callable[[Place], None]:
    """Change the last checkpoint, with no other to fall back to."""

    def spoil(place: Place) -> None:
        _ = place.data, place.store
        (place.training / _FIRST).unlink()
        edit(place.training / _LAST, change)

    return spoil


def _state(**values: Any) -> Callable[[Place], None]:
    return _alone(lambda content: content.update(values))


def _meta(content: dict[str, Any]) -> None:
    content["model"] = {key: value.to("meta") for key, value in content["model"].items()}


def _nothing(content: dict[str, Any]) -> None:
    content["optimizer"] = {"state": {}, "param_groups": []}


def _no_random_state(content: dict[str, Any]) -> None:
    del content["processes"][0]["random"]


def _text_architecture(content: dict[str, Any]) -> None:
    content["architecture"] = {key: str(value) for key, value in content["architecture"].items()}


def _fewer(content: dict[str, Any]) -> None:
    """The parameters of one group alone."""
    content["optimizer"]["param_groups"].pop()


def _nan(content: dict[str, Any]) -> None:
    content["model"]["head.3.weight"].fill_(float("nan"))


def _other_random_state(content: dict[str, Any]) -> None:
    content["processes"][0]["random"]["numpy"] = [1, 2]


def _row(case: str, what: str, spoil: Callable[[Place], None], *words: str) -> Fault:
    slow = case not in ("R-s_step", "R-s_opt", "new-resume-2")
    what = f"checkpoint in OUTPUT with {what}: train resumes"
    return Fault(case, what, "{train} --allow-config-change", refused(*words), spoil, slow)


ROWS = [
    _row("R-s_step", 'step "abc"', _state(step="abc"), _LAST, "step", "'abc'"),
    _row("R-s_proc", "no processes", _state(processes=[]), _LAST, "processes"),
    _row("R-s_opt", "optimizer of nothing", _alone(_nothing), _LAST, "param_groups"),
    _row("R-s_epoch", "epoch -7", _state(epoch=-7), _LAST, "epoch", "-7"),
    _row("R-s_cfg", "config 5", _state(config=5), _LAST, "config"),
    _row("R-s_meta", "meta weights", _alone(_meta), _LAST, "model."),
    _row("train-h2", "random state missing", _alone(_no_random_state), _LAST, "random"),
    _row("train-h3", "architecture {}", _state(architecture={}), _LAST, "is of"),
    _row("train-h4", "architecture of strings", _alone(_text_architecture), _LAST, "is of"),
    _row("new-resume-1", "an optimizer of fewer groups", _alone(_fewer), "cannot be continued", "parameter groups"),
    _row("new-resume-2", "NaN weights", _alone(_nan), _LAST, "head.3.weight", "finite"),
    _row("new-resume-3", "random numbers of another form", _alone(_other_random_state), "cannot be continued"),
]

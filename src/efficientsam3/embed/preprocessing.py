"""Which preprocessing a run feeds: the configuration's answer, where it says `teacher` the teacher's."""

from efficientsam3.config.schema import DataConfig
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.runtime.errors import UserError


def resolve_preprocessing(data: DataConfig, teacher: Preprocessing | None) -> Preprocessing:
    """Fill in `teacher` where RESIZE, MEAN or STD says so.

    Args:
        data: the configuration's section.
        teacher: what the teacher was trained on, or None where nobody knows.

    Raises:
        UserError: a key says `teacher`, and nobody knows.
    """
    given = {"resize": data.RESIZE, "mean": data.MEAN, "std": data.STD}
    unknown = [f"DATA.{key.upper()}" for key, value in given.items() if value == "teacher"]
    if teacher is None and unknown:
        raise UserError(
            f"{', '.join(unknown)} cannot be 'teacher' here, since this teacher does not say what it was trained on: "
            "give RESIZE (square or pad), MEAN and STD."
        )
    own = teacher.model_dump() if teacher else {}
    values = {key: own[key] if value == "teacher" else value for key, value in given.items()}
    return Preprocessing(image_size=data.IMG_SIZE, **values)

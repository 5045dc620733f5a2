"""The named students: one table, which configurations, commands and error messages read.

Another one is an entry here and nothing else. Only where weights are published under the names of the architecture's
authors does `checkpoints.student_keys` map those; a student without such a layout keeps timm's names everywhere.
"""

from dataclasses import dataclass

TIMM_PREFIX = "timm/"  # stands before the name of any other timm model


@dataclass(frozen=True)
class NamedStudent:
    """A student that has a name of its own."""

    backbone: str  # its name in configurations and checkpoints
    timm_name: str  # the timm model that it is built from


# In the order of the published table: each family from small to large.
STUDENTS = {
    "es_ev_s": NamedStudent("efficientvit_b0", "efficientvit_b0"),
    "es_ev_m": NamedStudent("efficientvit_b1", "efficientvit_b1"),
    "es_ev_l": NamedStudent("efficientvit_b2", "efficientvit_b2"),
    "es_rv_s": NamedStudent("repvit_m0_9", "repvit_m0_9"),
    "es_rv_m": NamedStudent("repvit_m1_1", "repvit_m1_1"),
    "es_rv_l": NamedStudent("repvit_m2_3", "repvit_m2_3"),
    "es_tv_s": NamedStudent("tiny_vit_5m", "tiny_vit_5m_224"),
    "es_tv_m": NamedStudent("tiny_vit_11m", "tiny_vit_11m_224"),
    "es_tv_l": NamedStudent("tiny_vit_21m", "tiny_vit_21m_224"),
}


def named_backbones() -> dict[str, str]:
    """The backbones of the named students, each with the timm model that it is built from."""
    return {student.backbone: student.timm_name for student in STUDENTS.values()}


def backbone_of(name: str) -> str:
    """The backbone of the student called `name`; a name outside the table is taken for a backbone's."""
    return STUDENTS[name].backbone if name in STUDENTS else name

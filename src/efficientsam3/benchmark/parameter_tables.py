"""The comparison of parameters as tables for a terminal."""

from rich.table import Table

from efficientsam3.benchmark.parameters import Comparison, StudentSize, TeacherSize
from efficientsam3.runtime.tables import plain_table


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Three tables: the teacher, the students as published, and what the published figures leave out."""
    return [
        _teacher_table(comparison.teacher),
        _published_table(comparison),
        _encoder_table(comparison),
    ]


def millions(count: int) -> str:
    """A count of parameters, as `7.77M`."""
    return f"{count / 1e6:.2f}M"


def billions(count: int) -> str:
    """A count of multiply-accumulates in units of 1e9 (GMACs)."""
    return f"{count / 1e9:.2f}"


def saving(part: int, whole: int) -> str:
    """How much smaller `part` is than `whole`, in percent."""
    return f"{100 * (1 - part / whole):.2f}%"


def _teacher_table(teacher: TeacherSize) -> Table:
    table = plain_table("Teacher: SAM3", ["part", "parameters"], "A student replaces the trunk; both necks stay.")
    for part, count in (
        ("total", teacher.parameters),
        ("vision backbone (trunk and both necks)", teacher.vision),
        ("  of which trunk", teacher.trunk),
        ("language backbone", teacher.language),
    ):
        table.add_row(part, millions(count))
    return table


def _published_table(comparison: Comparison) -> Table:
    teacher = comparison.teacher
    table = plain_table(
        "As published: the backbone alone",
        ["student", "backbone", "parameters", "saved"],
        f"Saved: of the vision backbone's {millions(teacher.vision)}.",
    )
    for student in comparison.students:
        count = student.backbone_parameters
        table.add_row(student.name, student.backbone, millions(count), saving(count, teacher.vision))
    return table


def _encoder_table(comparison: Comparison) -> Table:
    teacher = comparison.teacher
    table = plain_table(
        f"The whole encoder with the {comparison.head} head, and its work at {teacher.image_size} pixels",
        ["student", "head", "backbone + head", "saved", "GMACs", "of which head", "fewer"],
        f"Saved and fewer: than the trunk's {millions(teacher.trunk)} and {billions(teacher.trunk_macs)} GMACs. "
        "GMACs: 1e9 multiply-accumulates of one image.",
    )
    for student in comparison.students:
        table.add_row(*_encoder_row(student, teacher))
    return table


def _encoder_row(student: StudentSize, teacher: TeacherSize) -> list[str]:
    return [
        student.name,
        millions(student.head_parameters),
        millions(student.parameters),
        saving(student.parameters, teacher.trunk),
        billions(student.macs),
        billions(student.head_macs),
        f"{teacher.trunk_macs / student.macs:.3g}x",
    ]

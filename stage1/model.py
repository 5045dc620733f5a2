"""The builders of teachers and students, under the published name of this file."""

from efficientsam3.models.build import build_student
from efficientsam3.models.teacher import build_teacher

__all__ = ["build_student", "build_teacher"]

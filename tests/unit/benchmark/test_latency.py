"""Every way of running a student gives the same embedding, and is timed."""

import pytest
import torch

from efficientsam3.benchmark.latency import build_ways, measure_latency
from efficientsam3.benchmark.latency_tables import latency_table
from efficientsam3.benchmark.requests import EAGER, WAYS
from efficientsam3.cli import main
from efficientsam3.models.student import StudentArchitecture
from efficientsam3.runtime.errors import UserError

NOT_COMPILED = [way for way in WAYS if "compiled" not in way]
CPU = torch.device("cpu")
SMALL = StudentArchitecture("efficientvit_b0", 64, 16, 224)


def test_all_ways_say_the_same() -> None:
    ways = build_ways(SMALL, set(NOT_COMPILED), CPU)
    with torch.inference_mode():
        answers = {way: forward() for way, forward in ways.items()}
    assert list(answers) == NOT_COMPILED
    outputs = {way: torch.as_tensor(answer[0] if way.startswith("onnx") else answer) for way, answer in answers.items()}
    for way, output in outputs.items():
        assert output.shape == outputs[EAGER].shape
        limit = 0.3 if way == "onnx int8" else 1e-4
        assert (output - outputs[EAGER]).norm() <= limit * outputs[EAGER].norm(), way
    assert (outputs["onnx int8"] - outputs["onnx"]).norm() > 1e-3 * outputs["onnx"].norm()


def test_onnx_runtime_is_timed_on_the_cpu() -> None:
    with pytest.raises(UserError, match="on the CPU: leave out --way onnx on mps"):
        build_ways(SMALL, {EAGER, "onnx"}, torch.device("mps"))


def test_a_row_has_size_times_and_memory() -> None:
    latency = measure_latency("es_ev_s", SMALL, ["fused"], CPU, rounds=1)
    assert latency.milliseconds.keys() == {EAGER, "fused"}
    assert min(latency.milliseconds.values()) > 0
    table = latency_table([latency], 1)
    assert len(table.rows) == 1
    assert len({len(list(column.cells)) for column in table.columns}) == 1


def test_an_unknown_student_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "student", "--student", "es_xx"]) == 2
    assert "es_xx is not known" in capsys.readouterr().err

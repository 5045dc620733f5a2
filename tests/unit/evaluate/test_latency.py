"""Every way of running a student gives the same embedding, and is timed."""

import pytest
import torch

from efficientsam3.cli import main
from efficientsam3.evaluate.latency import EAGER, WAYS, build_ways, measure_latency
from efficientsam3.evaluate.latency_tables import latency_table
from efficientsam3.models.student import StudentArchitecture
from efficientsam3.runtime.memory import peak_of

CPU = torch.device("cpu")
SMALL = StudentArchitecture("efficientvit_b0", 64, 16, 224)


def test_all_ways_say_the_same() -> None:
    ways = build_ways(SMALL, set(WAYS) - {"compiled"}, CPU)
    with torch.inference_mode():
        outputs = {way: forward() for way, forward in ways.items()}
    assert list(outputs) == [way for way in WAYS if way != "compiled"]
    for way, output in outputs.items():
        assert torch.allclose(output, outputs[EAGER], atol=1e-4 * outputs[EAGER].abs().max()), way


def test_a_row_has_size_times_and_memory() -> None:
    latency = measure_latency("es_ev_s", SMALL, ["fused"], CPU, rounds=1)
    assert latency.milliseconds.keys() == {EAGER, "fused"}
    assert min(latency.milliseconds.values()) > 0
    table = latency_table([latency], 1)
    assert len(table.rows) == 1
    assert len({len(list(column.cells)) for column in table.columns}) == 1


def test_memory_is_that_of_the_work() -> None:
    size = 1 << 26

    def work() -> None:
        torch.ones(size, dtype=torch.uint8)

    peak = peak_of(work, CPU)
    if peak is not None:
        assert 0.9 * size < peak < 1.5 * size


def test_an_unknown_student_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "student", "--student", "es_xx"]) == 2
    assert "es_xx is not known" in capsys.readouterr().err

import logging
from pathlib import Path

import pytest
import torch

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.run import check_unused, run_step


def test_an_output_has_one_run_at_a_time(tmp_path: Path) -> None:
    check_unused(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with run_step("cpu", tmp_path):
        with pytest.raises(UserError, match="OUTPUT .* is in use by another run"), run_step("cpu", tmp_path):
            pass
        with pytest.raises(UserError, match="in use"):
            check_unused(tmp_path)
    with run_step("cpu", tmp_path), run_step("cpu", tmp_path, writes=False):
        pass
    check_unused(tmp_path)


def test_a_dead_reader_is_a_sentence_and_other_errors_are_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="process that reads images has died"), run_step("cpu", tmp_path):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="shape"), run_step("cpu", tmp_path):
        raise RuntimeError("shape")


def test_too_little_memory_of_a_gpu_is_a_sentence_with_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too little memory .CUDA out.*--accumulation"), run_step("cpu", tmp_path):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def test_a_log_that_cannot_be_written_is_named_once_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no full device here")
    (tmp_path / "log_rank0.txt").symlink_to("/dev/full")
    with run_step("cpu", tmp_path):
        for _ in range(2):
            logging.getLogger(LOGGER_NAME).info("going on")
    err = capsys.readouterr().err
    assert err.replace("\n", "").count("cannot be written: No space left on device") == 1
    assert "Traceback" not in err

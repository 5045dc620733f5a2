"""One step at full size with both necks trained, through detector and interactive predictor, and the merge of it."""

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.checkpoints.necks import digest_neck, read_trained_necks, under
from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.checkpoints.sam3_keys import STUDENT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX, sam3_tensors
from efficientsam3.config.load import load_config
from efficientsam3.config.schema import TrainConfig
from efficientsam3.data.preprocess import SAM3_PREPROCESSING
from efficientsam3.merge.run import merge
from efficientsam3.runtime.distributed import Process
from efficientsam3.sam3.contents import read_contents
from efficientsam3.sam3.decoders import Sam3Decoder
from efficientsam3.sam3.necks import load_neck
from efficientsam3.store.manifest import StoreManifest
from efficientsam3.testing.sample_images import write_sample_images
from efficientsam3.train.loop import Trainer
from efficientsam3.train.run import train

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT.parent / "shared" / "sam3_reference"
CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs shared/sam3_reference beside the checkout"),
]


def write_store(directory: Path, key: str) -> None:
    """A store of one embedding of noise, of SAM3's shape."""
    directory.mkdir(parents=True)
    manifest = StoreManifest(embed_dim=1024, embed_size=72, preprocessing=SAM3_PREPROCESSING)
    (directory / "manifest.json").write_text(manifest.model_dump_json())
    noise = np.random.default_rng(0).normal(size=(1024, 72, 72)).astype("<f2")
    (directory / "rank0-values.bin").write_bytes(bytes(4) + noise.tobytes())
    (directory / "rank0-keys.txt").write_text(f"{key}\n")


def test_a_step_with_trained_necks_and_the_parity_of_its_merge(
    tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam3, merged = tmp_path / "sam3.pt", tmp_path / "merged.pt"
    run("python", REFERENCE / "make_sam3_like.py", sam3, timeout=1200)
    write_sample_images(tmp_path / "data", train=1, val=1)
    write_store(tmp_path / "store", "sa_1")
    opts = ["DISTILL.TEACHER_EMBED_PATH", tmp_path / "store", "MODEL.PRETRAINED", "false", "DATA.BATCH_SIZE", "1"]
    opts += ["DATA.NUM_WORKERS", "0", "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0", "DISTILL.NORMALIZE", "none"]
    opts += ["DISTILL.MASKS.DECODER", sam3, "DISTILL.MASKS.NECK", "0.1", "DISTILL.MASKS.LEVELS", "1"]
    opts += ["DISTILL.DETECTOR.CHECKPOINT", sam3, "DISTILL.DETECTOR.NECK", "0.1", "DISTILL.DETECTOR.LEVELS", "1"]
    opts += ["DISTILL.DETECTOR.TEXT", "1", "DISTILL.DETECTOR.VISUAL", "0", "DISTILL.DETECTOR.PHRASES", "[dog]"]
    fixed = {"DATA.DATA_PATH": tmp_path / "data", "OUTPUT": tmp_path / "run"}
    config = load_config(TrainConfig, ROOT / "stage1/configs/es_ev_s.yaml", list(map(str, opts)), fixed)
    step, costs = Trainer._take_step, []

    def measured(trainer: Trainer, group: Any) -> Any:
        before, started = resident("VmRSS"), time.process_time()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        found = step(trainer, group)
        costs.append((time.process_time() - started, resident("VmHWM") - before, before))
        return found

    monkeypatch.setattr(Trainer, "_take_step", measured)
    summary = train(config, Process(0, 1, CPU, None))
    ((seconds, growth, before),) = costs
    print(f"\none step: {seconds:.0f} s of CPU, {growth / 1e6:.1f} GB beside the {before / 1e6:.1f} GB before")
    assert summary.metrics["train/skipped_steps"] == 0
    for name in ("mask_bce", "mask_levels", "detector_mask", "detector_levels", "detector_presence"):
        assert np.isfinite(summary.metrics[f"train/{name}"])
    necks = read_trained_necks(summary.checkpoint)
    assert necks is not None
    own = read_contents(sam3)
    for name in ("detector", "tracker"):
        before_training, trained = under(own.tensors, name), necks.weights(name)
        assert necks.origins[name] == digest_neck(before_training)
        assert all(not torch.equal(value, before_training[key]) for key, value in trained.items() if value.ndim > 1)
    account = merge(summary.checkpoint, sam3, merged)
    print("\n".join(account.lines()))
    print(f"peak of all: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    student = len(torch.load(summary.checkpoint, weights_only=True, mmap=True)["model"])
    found = read_tensors(merged, values=False)
    rest = {key: fact.shape for key, fact in sam3_tensors().items() if not key.startswith(TRUNK_PREFIX)}
    assert {key: tuple(value.shape) for key, value in found.items() if not key.startswith(STUDENT_PREFIX)} == rest
    assert len(found) == len(rest) + student
    decoder, whole = Sam3Decoder(sam3, CPU), Sam3Decoder(merged, CPU)
    behind = decoder.behind(load_neck(decoder.neck, necks, "tracker", "the student", "SAM3"))
    noise = torch.randn(1, 1024, 18, 18, generator=torch.Generator().manual_seed(0))
    for level, expected, frozen in zip(*(one.features(noise) for one in (whole, behind, decoder)), strict=True):
        assert torch.equal(level, expected)
        assert not torch.equal(level, frozen)


def resident(name: str) -> int:
    """VmRSS or VmHWM, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

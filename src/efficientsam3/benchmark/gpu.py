"""What one GPU does with each step at full size, nothing downloaded: SAM3's trunk, embedding, training each student."""

import gc
import itertools
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from efficientsam3.benchmark.gpu_device import describe_gpu, describe_step, watch_kernels
from efficientsam3.benchmark.gpu_inputs import SMALL, Inputs, Scale
from efficientsam3.benchmark.parameters import measure_student
from efficientsam3.benchmark.steps import StageClock, elapsed, profile_steps
from efficientsam3.benchmark.training_memory import count_training_memory
from efficientsam3.checkpoints.sam3 import load_trunk
from efficientsam3.data.loader import ImageBatch
from efficientsam3.embed.batches import image_batches
from efficientsam3.embed.estimate import measure_rate
from efficientsam3.embed.plan import missing_images
from efficientsam3.models.teacher import compile_trunk
from efficientsam3.runtime.device import autocast_dtype
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.train.batches import TrainBatch
from efficientsam3.train.build import build_training
from efficientsam3.train.loop import Trainer
from efficientsam3.train.plan import TrainPlan, plan_training
from efficientsam3.train.targets import StoredTargets

_WARM_UP = 3  # runs before those that are timed
_LONGEST = 40.0  # seconds that an item may take at most, as a rule; with less left, no further one is begun
_FORWARD_AND_BACKWARD = 3  # times the forward pass's operations
_MOST_RUNS = 1000
_EMBED_BATCHES = 20


@dataclass(frozen=True)
class Row:
    """One measurement, or why there is none."""

    subject: str
    batch: int = 0
    rate: float | None = None  # images/s
    gflops: float | None = None  # floating-point operations of an image, in units of 1e9: products and convolutions
    memory: int | None = None  # most bytes that PyTorch's allocator gave out, the model's included; of a GPU alone
    note: str = ""


@dataclass(frozen=True)
class GpuReport:
    """What was measured, and on what."""

    machine: dict[str, str]
    dtype: str  # of products and convolutions
    peak: float  # TFLOP/s of a product of large square matrices in that dtype, measured here
    rows: tuple[Row, ...]
    seconds: float  # that everything took
    failures: dict[str, str]  # traceback of each subject that failed

    def share(self, row: Row) -> float | None:
        """The share of `peak` that a measurement reached."""
        return row.rate * row.gflops / (1000 * self.peak) if row.rate and row.gflops else None


def measure_gpu(
    device: torch.device, students: Sequence[str], batch: int = 32, seconds: float = 480.0, small: bool = False
) -> GpuReport:
    """Measure everything in a temporary folder, one item after the other; one that fails leaves the others be.

    Args:
        device: where to compute.
        students: names; the first is also trained from a store.
        batch: images of a training's batch; halved where they do not fit.
        seconds: no item is begun that could end later than this.
        small: tiny models and images, to try the command out.
    """
    return _Benchmark(device, SMALL if small else Scale(), batch).run(students, seconds)


class _Benchmark:
    def __init__(self, device: torch.device, scale: Scale, batch: int) -> None:
        self._process = Process(0, 1, device, None)
        self._device = device
        self._dtype = autocast_dtype(device)
        self._scale = scale
        self._batch = batch
        self._rates: dict[str, float] = {}  # images/s, by subject
        self._failures: dict[str, str] = {}

    def run(self, students: Sequence[str], seconds: float) -> GpuReport:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="efficientsam3-") as folder:
            peak = _matrix_rate(self._scale.matrix, self._dtype, self._device, self._scale.seconds)
            inputs = Inputs(Path(folder), self._scale, self._device)
            deadline = start + seconds - (_LONGEST if self._scale.seconds else 0)
            rows = list(self._rows(self._items(inputs, students), deadline))
        dtype = str(self._dtype or torch.float32).removeprefix("torch.")
        return GpuReport(describe_gpu(self._device), dtype, peak, tuple(rows), time.monotonic() - start, self._failures)

    def _items(self, inputs: Inputs, students: Sequence[str]) -> Iterator[tuple[str, Callable[[], Row]]]:
        for batch, compiled in itertools.product(self._scale.trunk_batches, (False, True)):
            name = f"trunk, batch {batch}, {'compiled' if compiled else 'eager'}"
            yield name, partial(self._trunk, name, inputs, batch, compiled)
        yield "embed", partial(self._embed, inputs, False)
        yield "embed, compiled", partial(self._embed, inputs, True)
        yield "write a store", partial(self._write_store, inputs)
        for student in students:
            yield f"train {student}", partial(self._train, f"train {student}", inputs, student)
        name = f"train {students[0]} from the store"
        yield name, partial(self._train_from_store, name, inputs, students[0])

    def _rows(self, items: Iterable[tuple[str, Callable[[], Row]]], deadline: float) -> Iterator[Row]:
        for name, measure in items:
            if time.monotonic() > deadline:
                yield Row(name, note="left out: no time left")
                continue
            try:
                row = measure()
            except (RuntimeError, OSError, UserError) as error:
                self._failures[name] = traceback.format_exc()
                row = Row(name, note=f"failed: {_first_line(error)}")
            if row.rate is not None:
                self._rates[name] = row.rate
            yield row
            self._release()

    def _release(self) -> None:
        gc.collect()
        torch.compiler.reset()
        if self._device.type == "cuda":
            with suppress(RuntimeError):  # a broken context has been reported already
                torch.cuda.empty_cache()

    def _trunk(self, name: str, inputs: Inputs, batch: int, compiled: bool) -> Row:
        """The trunk alone, on the same noise again and again."""
        size = inputs.trunk_config.image_size
        pixels = torch.randn(batch, 3, size, size, device=self._device)
        trunk = load_trunk(inputs.trunk).to(self._device)

        @torch.inference_mode()
        def forward() -> torch.Tensor:
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
                tokens: torch.Tensor = trunk(pixels).last_hidden_state
            return tokens

        note = ""
        if compiled:
            eager = forward().float()
            start = time.monotonic()
            compile_trunk(trunk)
            difference = float((forward().float() - eager).norm() / eager.norm())
            note = f"compiled in {time.monotonic() - start:.0f} s; differs by {difference:.1e} from eager"
            del eager
        rate, memory = self._repeat(forward, batch)
        return Row(name, batch, rate, inputs.trunk_gflops, memory, note)

    def _embed(self, inputs: Inputs, compiled: bool) -> Row:
        """JPEGs into a store, as `embed` does it."""
        batch = self._scale.trunk_batches[-1]
        plan = replace(inputs.embedding(batch, self._device), compile_teacher=compiled)
        missing = missing_images(plan)
        with self._peak() as memory, watch_kernels(self._device) as describe:
            found = measure_rate(plan, missing, self._process, _EMBED_BATCHES, 5 * self._scale.seconds)
        computing = describe(found.warm_up / (found.warm_up + found.batches))
        read = _reading_rate(inputs, batch, self._process)
        note = f"{computing}; {found.batches} batches; reading images alone: {read:.0f}/s by {inputs.workers} workers"
        return Row("embed, compiled" if compiled else "embed", batch, found.images, None, memory(), note)

    def _write_store(self, inputs: Inputs) -> Row:
        rate = inputs.write_store()
        return Row("write a store", 1, rate, note=f"{rate * inputs.manifest.record_size / 1e9:.2f} GB/s")

    def _train(self, name: str, inputs: Inputs, student: str) -> Row:
        """Steps of a real trainer on a batch that lies ready on the device; the largest power of two that fits."""
        batch, note = self._batch, ""
        while True:
            try:
                return self._train_at(name, inputs, student, batch, note)
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
            note = f"out of memory at batch {batch}"
            batch //= 2
            self._release()

    def _train_at(self, name: str, inputs: Inputs, student: str, batch: int, note: str) -> Row:
        plan = plan_training(inputs.training(student, batch, self._device))
        images, records = _ready_batch(plan, batch, self._device)
        assert isinstance(plan.targets, StoredTargets)
        training = build_training(replace(plan, targets=_ReadyTargets(plan.targets.store, records)), self._process)
        gflops = _FORWARD_AND_BACKWARD * 2 * measure_student(student, plan.architecture).macs / 1e9
        with closing(_steps(training.trainer, images)) as steps:
            rate, memory = self._repeat(partial(next, steps), batch)
            oddities = describe_step(partial(next, steps), training.trainer.student, self._device)
        counted = count_training_memory(plan.architecture, self._dtype or torch.bfloat16).total(batch)
        notes = [f"counted: {counted / 1e9:.1f} GB", oddities, note]
        return Row(name, batch, rate, gflops, memory, "; ".join(filter(None, notes)))

    def _train_from_store(self, name: str, inputs: Inputs, student: str) -> Row:
        """Steps of a real training, with all that feeds it."""
        ready = self._rates.get(f"train {student}", 0.0)
        batch = min(self._batch, max(1, inputs.images // 4))
        steps = max(2, int(3 * self._scale.seconds * ready / batch))
        with self._peak() as memory:
            profile = profile_steps(
                plan_training(inputs.training(student, batch, self._device)), self._process, steps, _WARM_UP
            )
        waiting = profile.stages["wait for data"].milliseconds / profile.step_milliseconds
        note = f"waits for data {100 * waiting:.0f} % of the time; reading alone: {profile.data.loader_rate:.0f}/s"
        return Row(name, batch, profile.rate, None, memory(), note)

    def _repeat(self, run: Callable[[], object], images: int) -> tuple[float, int | None]:
        """Images/s of a run that takes so many, and the memory that it takes at most."""
        with self._peak() as memory:
            rate = images * _runs_per_second(run, self._device, self._scale.seconds)
        return rate, memory()

    @contextmanager
    def _peak(self) -> Iterator[Callable[[], int | None]]:
        """Gives a function that tells the most memory taken since."""
        is_cuda = self._device.type == "cuda"
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        yield lambda: torch.cuda.max_memory_allocated(self._device) if is_cuda else None


class _ReadyTargets(StoredTargets):
    """A store's embeddings of which one batch's records lie on the device already; no other is read."""

    def __init__(self, store: EmbeddingStore, records: torch.Tensor) -> None:
        super().__init__(store)
        self._records = records

    def record_size(self, rows: Sequence[int]) -> int:
        """See `Targets`; nothing is to be read."""
        return 0

    def __call__(self, batch: TrainBatch, pixels: torch.Tensor) -> torch.Tensor:
        """See `Targets`."""
        return self.store.decode(self._records)[1]


def _steps(trainer: Trainer, images: ImageBatch) -> Generator[None, None, None]:
    """More steps on one batch than are taken."""
    count = 2 * _MOST_RUNS
    yield from trainer.train(itertools.repeat(images, count), count)


def _ready_batch(plan: TrainPlan, batch: int, device: torch.device) -> tuple[ImageBatch, torch.Tensor]:
    """Noise as images, and records of the store, on the device."""
    size, rows = plan.architecture.image_size, [int(row) for row in plan.train.rows[:batch]]
    rows = (rows * batch)[:batch]
    assert isinstance(plan.targets, StoredTargets)
    records = torch.stack([plan.targets.store.read(row) for row in rows]).to(device)
    images = ImageBatch(
        [f"image {number}" for number in range(batch)],
        torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device),
        torch.full((batch, 2), size, device=device),
        torch.zeros(batch, dtype=torch.int32),
        rows,
        [],
    )
    return images, records


def _runs_per_second(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    clock = StageClock(device)
    for _ in range(_WARM_UP):
        run()
    start = clock.now()
    run()
    one = elapsed(start, clock.now()).milliseconds / 1000
    count = max(2, min(_MOST_RUNS, int(seconds / one)))
    start = clock.now()
    for _ in range(count):
        run()
    return 1000 * count / elapsed(start, clock.now()).milliseconds


def _matrix_rate(side: int, dtype: torch.dtype | None, device: torch.device, seconds: float) -> float:
    """TFLOP/s of a product of square matrices of random numbers."""
    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    return 2 * side**3 / 1e12 * _runs_per_second(lambda: left @ right, device, seconds / 5)


def _reading_rate(inputs: Inputs, batch: int, process: Process) -> float:
    """Images/s that the workers of `embed` bring where nothing else happens."""
    plan = inputs.embedding(batch, process.device)
    start = time.monotonic()
    batches = image_batches(plan, missing_images(plan), process)
    return sum(len(each.image_ids) for each in batches) / (time.monotonic() - start)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

"""The training step as a CUDA graph: what to do for an arm whose host does nothing but launch.

Where a graph cannot be had, the step-by-step arm computes the same functions: :func:`make_arm` picks, and a capture that fails
says so with an error of its own, which the caller can take as advice.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from explr.errors import ExplrError
from explr.experiments.arms import Arm
from explr.experiments.data import Choices, Dataset, epoch_choices
from explr.experiments.precision import arithmetic
from explr.experiments.records import RunConfig, device_name

IN_FLIGHT = 32  # launches of an arm that may be under way: enough that the device never waits, few enough to stop at once


class CaptureError(ExplrError):
    """A training step cannot be captured in a CUDA graph, here; an arm without a graph may well run."""


def make_arm(config: RunConfig, data: Dataset, steps: int, *, compiled: bool = False) -> Arm:
    """Return the arm for the device of the data: captured on CUDA where it can be.

    It cannot be in float64, for another optimizer than heavy-ball SGD, and must not where EXPLR_EAGER is set.

    Raises:
        CaptureError: as :class:`CapturedArm`.

    >>> from explr.experiments.data import synthetic
    >>> config = RunConfig(model="preresnet", model_args={"depth": 8, "width": 4})
    >>> make_arm(config, synthetic(train=64, test=32), steps=1).graph
    False
    """
    device, eager = data.train_labels.device, bool(os.environ.get("EXPLR_EAGER"))
    # The twins of other optimizers set more at every step than a rate.
    eager = eager or device.type != "cuda" or config.precision == "float64" or config.optimizer != "sgd"
    return Arm(config, data, steps) if eager else CapturedArm(config, data, steps, compiled=compiled)


class CapturedArm(Arm):
    """An arm on CUDA whose whole step is one graph, which the host only launches: several arms share a GPU well.

    Everything that a step needs lies on the device: the choices of the epoch, the learning rates of its steps and a counter.
    The last, smaller batch of an epoch has a graph of its own. Arms run on streams of their own, side by side.

    Raises:
        CaptureError: if the step cannot be captured here; the message says why. What there was is as before.
    """

    graph: ClassVar[bool] = True

    def __init__(self, config: RunConfig, data: Dataset, steps: int, *, compiled: bool = False) -> None:
        if config.precision == "float64":
            raise ExplrError("precision='float64' cannot be captured: torch's fused SGD reads its learning rate as float32.")
        self._lr = torch.zeros((), device=data.train_labels.device)
        super().__init__(config, data, steps)
        self._stream = torch.cuda.Stream(self.device)
        self._index = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._epoch_rates = torch.zeros(self.steps_per_epoch, device=self.device)
        self._choices = epoch_choices(len(data.train_labels), config.seed, 0).to(self.device)
        self._sizes = [config.batch_size] * (self.steps_per_epoch - 1)
        self._sizes.append(len(data.train_labels) - sum(self._sizes))
        try:
            self._network = torch.compile(self.model, dynamic=False) if compiled else self.model
            self._graphs = self._capture()
        except Exception as error:  # whatever it is: the same step without a graph runs, or says better what is wrong
            cause = _first_cause(error)
            if isinstance(cause, torch.cuda.OutOfMemoryError):
                raise cause from None
            what = "compiled and captured" if compiled else "captured"
            raise CaptureError(
                f"the training step cannot be {what} by torch {torch.__version__} on {device_name(self.device)} "
                f"({type(cause).__name__}: {' '.join(str(cause).split())[:300]})"
            ) from error

    def steps(self, epoch: int) -> Iterator[int]:
        """Launch the steps of one epoch, one whenever the iterator is advanced; wait while too many are under way."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))  # where a checkpoint may have just been loaded
        first = epoch * self.steps_per_epoch
        with torch.cuda.stream(self._stream):
            self._begin(epoch)
            rates = self._rates(slice(first, first + self.steps_per_epoch))
            self._epoch_rates.copy_(torch.from_numpy(rates))
            self._choices.copy_(epoch_choices(len(self.data.train_labels), self.config.seed, epoch))
            self._index.zero_()
        launched: deque[torch.cuda.Event] = deque()
        for index, size in enumerate(self._sizes):
            with torch.cuda.stream(self._stream):
                self._graphs[size].replay()
            launched.append(self._stream.record_event())
            if len(launched) > IN_FLIGHT:
                launched.popleft().synchronize()
            yield first + index
        with torch.cuda.stream(self._stream):
            for norm in _counting(self.model):
                norm.num_batches_tracked += self.steps_per_epoch

    def wait(self) -> None:
        """Return when the device has done all that it was asked to do, on this arm's stream and on the others."""
        torch.cuda.synchronize(self.device)

    def step(self, step: int, batch: Choices) -> tuple[Tensor, Tensor, Tensor]:
        """Refuse: the steps of this arm are in its graphs."""
        raise ExplrError("a captured arm takes the steps of whole epochs: call run_epoch or steps, or use an Arm.")

    def epoch_results(self, epoch: int) -> tuple[dict[str, float], dict[str, float]]:
        """Wait for the epoch to end; return what it adds to the record."""
        with torch.cuda.stream(self._stream):
            return super().epoch_results(epoch)

    def _make_optimizer(self, lr: float | Tensor = 1.0, fused: bool | None = True) -> torch.optim.Optimizer:
        return super()._make_optimizer(self._lr, fused)

    def _logits(self, images: Tensor) -> Tensor:
        bfloat16 = self.config.precision == "bfloat16"
        network = self._network if self.model.training else self.model
        # A cache of cast weights would outlive the step that it was captured in.
        with torch.autocast("cuda", torch.bfloat16, enabled=bfloat16, cache_enabled=False):
            logits: Tensor = network(images.contiguous(memory_format=self._layout))
        return logits.to(self.dtype)

    def _device_step(self, size: int) -> None:
        """Take the step that the counter on the device says, and advance the counter."""
        rows = self._index * self.config.batch_size + torch.arange(size, device=self.device)
        self._lr.copy_(self._epoch_rates.index_select(0, self._index)[0])
        loss, logits, labels = self._step(self._choices[rows])
        self.losses.index_copy_(0, self._index, loss.double()[None])
        self._right += (logits.argmax(1) == labels).sum()
        self._index += 1

    def _capture(self) -> dict[int, torch.cuda.CUDAGraph]:
        """Warm up, capture a graph for each batch size, and put everything back as it was."""
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        graphs: dict[int, torch.cuda.CUDAGraph] = {}
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        gc.collect()  # what is freed in the middle of a capture would invalidate it
        with torch.cuda.device(self.device), arithmetic(self.config.precision, autotune=True), _uncounted(self.model):
            try:
                for size in sorted(set(self._sizes), reverse=True):
                    with torch.cuda.stream(self._stream):
                        for _ in range(3):  # momentum buffers, workspaces and compiled kernels must be there before a capture
                            self._index.zero_()
                            self._device_step(size)
                        self._index.zero_()
                    self.optimizer.zero_grad()
                    graphs[size] = torch.cuda.CUDAGraph()
                    pool = next(iter(graphs.values())).pool() if len(graphs) > 1 else None
                    # by default a pinned allocation in another thread, a data loader's say, would end the capture
                    with torch.cuda.graph(graphs[size], pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                        self._device_step(size)
            finally:
                torch.cuda.set_stream(current)  # a capture that fails leaves its own stream in place
                torch.cuda.synchronize(self.device)
        self.model.load_state_dict(before)
        for buffer in self.buffers().get("momentum_buffer", {}).values():
            buffer.zero_()  # as good as none: torch starts the buffer with the first gradient
        return graphs


@contextmanager
def _uncounted(model: nn.Module) -> Iterator[None]:
    """In the block batch norms do not count their batches: a kernel each, for a number that nothing reads."""
    norms = _counting(model)
    counts = [norm.num_batches_tracked for norm in norms]
    try:
        for norm in norms:
            norm.num_batches_tracked = None
        yield
    finally:
        for norm, count in zip(norms, counts, strict=True):
            norm.num_batches_tracked = count


def _counting(model: nn.Module) -> list[Any]:
    """Return the batch norms that count their batches and make no use of it; without momentum they average over them."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.num_batches_tracked is not None and norm.momentum is not None]


def _first_cause(error: BaseException) -> BaseException:
    """Return the first of a chain of torch's errors: those that follow say only that the capture is broken."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error

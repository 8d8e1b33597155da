"""One side of a comparison in training: a network, its optimizer and its learning rates; step by step, or as a CUDA graph.

The weights of an exponential run would leave float32 before long. They never need to: multiplying them by a power of two,
with the learning rate multiplied by its square, changes no bit of the functions that follow (the symmetry of normalised
networks; the eps of their norms apart). An arm does so at the start of every epoch, so that its weights keep about the size
that they have under weight decay.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from explr.checks import FloatArray
from explr.errors import ExplrError
from explr.experiments import models
from explr.experiments.data import Choices, Dataset, epoch_choices
from explr.experiments.records import RunConfig, call_by_name

_DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


class Arm:
    """A network in training.

    Attributes:
        config: what it was made from.
        model: the network, initialised from ``config.seed``.
        learning_rates: of every step, and the growth of the weights that they cause.
        trainable: the parameters that are trained, by name.
        optimizer: torch's SGD.
        exponent: the weights are 2**exponent times larger than what ``model`` holds (``config.weight_scale`` apart).
        losses: of the steps of the epoch under way, float64 on the device, shape ``(steps_per_epoch,)``.
    """

    def __init__(self, config: RunConfig, data: Dataset, steps: int) -> None:
        if config.precision not in _DTYPES:
            raise ExplrError(f"precision={config.precision!r} is unknown: use one of {', '.join(_DTYPES)}.")
        self.config, self.data = config, data
        self.device, self.dtype = data.train_labels.device, _DTYPES[config.precision]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reseed the GPUs' generators as well
            classes = int(data.train_labels.max()) + 1
            model = call_by_name(models, config.model, {"num_classes": classes, **config.model_args})
        self.model: nn.Module = model.to(self.device, self.dtype, memory_format=torch.channels_last)
        self.trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if config.one_ulp:
            with torch.no_grad():
                for parameter in self.trainable.values():
                    parameter.copy_(torch.nextafter(parameter, torch.full_like(parameter, torch.inf)))
        if config.weight_scale != 1.0:
            self._rescale(config.weight_scale)
        self.learning_rates = config.learning_rates(steps)
        self.optimizer = self._make_optimizer()
        self.steps_per_epoch = -(-len(data.train_labels) // config.batch_size)
        self.exponent = 0
        self.losses = torch.zeros(self.steps_per_epoch, dtype=torch.float64, device=self.device)
        self._right = torch.zeros((), dtype=torch.int64, device=self.device)

    def run_epoch(self, epoch: int, after_step: Callable[[], Any] = lambda: None) -> None:
        """Train for one epoch; ``after_step`` is called after each step. Nothing is read back from the device."""
        self._begin(epoch)
        choices = epoch_choices(len(self.data.train_labels), self.config.seed, epoch).to(self.device)
        for index, batch in enumerate(choices.batches(self.config.batch_size)):
            loss, logits, labels = self.step(epoch * self.steps_per_epoch + index, batch)
            self.losses[index] = loss
            self._right += (logits.argmax(1) == labels).sum()
            after_step()

    def step(self, step: int, batch: Choices) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step of SGD; return the mean loss and the logits from before it, and the labels."""
        self.optimizer.param_groups[0]["lr"] = float(self._rates(slice(step, step + 1))[0])
        with _convolutions(self.config.precision):
            return self._step(batch)

    def epoch_results(self, epoch: int) -> tuple[dict[str, float], dict[str, float]]:
        """Wait for the epoch to end; return the row that it adds to ``Run.history``, and that to ``Run.weight_norms``.

        Raises:
            ExplrError: if a loss or a weight is not finite; the message names the step.
        """
        losses, count = self.losses.cpu(), len(self.data.train_labels)
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            raise ExplrError(
                f"the loss of step {epoch * self.steps_per_epoch + int(bad[0])} is {float(losses[bad[0]])}: the run has "
                "diverged. Lower the learning rate, or the growth that the weight decay stands for."
            )
        norms = self._weight_norms(epoch)  # before the test loss, which would only say that something is wrong
        sizes = torch.full((self.steps_per_epoch,), self.config.batch_size, dtype=torch.float64)
        sizes[-1] = count - (self.steps_per_epoch - 1) * self.config.batch_size
        test_loss, test_accuracy = self.evaluate()
        if not math.isfinite(test_loss):
            raise ExplrError(
                f"the test loss after epoch {epoch + 1} is {test_loss}: the run has diverged. Lower the learning rate."
            )
        row = {
            "train_loss": float(losses @ sizes) / count,
            "train_accuracy": int(self._right) / count,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "log_lr": float(self.learning_rates.log_lr[(epoch + 1) * self.steps_per_epoch - 1]),
        }
        return row, norms

    def _weight_norms(self, epoch: int) -> dict[str, float]:
        """Return the Euclidean norm of every trainable tensor (summed in float64: squares would overflow float32 first)."""
        norms = torch.stack([p.detach().double().norm() for p in self.trainable.values()]).tolist()
        for name, norm in zip(self.trainable, norms, strict=True):
            if not math.isfinite(norm):
                step = (epoch + 1) * self.steps_per_epoch - 1  # the losses were finite, so the last step has done it
                raise ExplrError(
                    f"the norm of {name} is {norm} after step {step}: the run has diverged. Lower the learning rate."
                )
        norms = [math.ldexp(norm, self.exponent) / self.config.weight_scale for norm in norms]
        return dict(zip(self.trainable, norms, strict=True))

    @torch.no_grad()
    def evaluate(self, batch_size: int = 1000) -> tuple[float, float]:
        """Return the mean loss and the accuracy on the test images, in evaluation mode."""
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.model.eval()
        with _convolutions(self.config.precision):
            for images, labels in self.data.test_batches(batch_size, self.dtype):
                logits = self._logits(images)
                right = (logits.argmax(1) == labels).sum()
                total += torch.stack([F.cross_entropy(logits, labels, reduction="sum").double(), right.double()])
        self.model.train()
        loss, accuracy = (total / len(self.data.test_labels)).tolist()
        return loss, accuracy

    def momentum(self) -> dict[str, Tensor]:
        """Return the momentum buffer of every trainable tensor, none before the first step."""
        buffers = {name: self.optimizer.state[p].get("momentum_buffer") for name, p in self.trainable.items()}
        return {name: buffer for name, buffer in buffers.items() if buffer is not None}

    def load_momentum(self, buffers: dict[str, Tensor]) -> None:
        """Take over what :meth:`momentum` gave; buffers that a graph knows stay where they are."""
        for name, buffer in buffers.items():
            own = self.optimizer.state[self.trainable[name]]
            if "momentum_buffer" in own:
                own["momentum_buffer"].copy_(buffer)
            else:
                own["momentum_buffer"] = buffer.clone()

    def _make_optimizer(self, lr: float | Tensor = 1.0, fused: bool | None = None) -> torch.optim.SGD:
        decay = self.config.weight_decay if self.config.regime == "weight_decay" else 0.0
        decay /= self.config.weight_scale**2
        return torch.optim.SGD(self.trainable.values(), lr=lr, momentum=self.config.momentum, weight_decay=decay, fused=fused)

    def _step(self, batch: Choices) -> tuple[Tensor, Tensor, Tensor]:
        images, labels = self.data.train_batch(batch, self.dtype, augment=self.config.augment)
        logits = self._logits(images)
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), logits.detach(), labels

    def _logits(self, images: Tensor) -> Tensor:
        bfloat16 = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            logits: Tensor = self.model(images.contiguous(memory_format=torch.channels_last))
        return logits.to(self.dtype)

    @torch.no_grad()
    def _rescale(self, factor: float) -> None:
        """Multiply the initial weights by ``factor``; what their size touches follows, so that the functions are the same."""
        for parameter in self.trainable.values():
            parameter.mul_(factor)
        for module in self.model.modules():
            if isinstance(module, _BatchNorm | nn.GroupNorm):  # the input of every norm has degree 1 in explr.models
                module.eps *= factor**2
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.mul_(factor)
                module.running_var.mul_(factor**2)

    def _begin(self, epoch: int) -> None:
        """Bring the weights back to their size under weight decay, up to the nearest power of two; forget the last epoch."""
        self.losses.zero_()
        self._right.zero_()
        exponent = round(self.learning_rates.log_scale[epoch * self.steps_per_epoch] / math.log(2))
        shift, self.exponent = exponent - self.exponent, exponent
        if not shift:
            return
        with torch.no_grad():
            for parameter in self.trainable.values():
                parameter.mul_(2.0**-shift)
            for buffer in self.momentum().values():
                buffer.mul_(2.0**shift)
            for module in self.model.modules():
                if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                    # its input grows as the weights do, in every invariant network of explr.models
                    module.running_mean.mul_(2.0**-shift)
                    module.running_var.mul_(4.0**-shift)

    def _rates(self, steps: slice) -> FloatArray:
        """Return the rates that the weights in ``model`` need: ``learning_rates`` times a power of 2 and the scale squared."""
        log_lr = self.learning_rates.log_lr[steps]
        powers = np.floor(log_lr / math.log(2))
        rates = np.ldexp(np.exp(log_lr - powers * math.log(2)), powers.astype(int) - 2 * self.exponent)
        return self.config.weight_scale**2 * rates


class CapturedArm(Arm):
    """An arm on CUDA whose whole step is one graph, which the host only launches: several arms share a GPU well.

    Everything that a step needs lies on the device: the choices of the epoch, the learning rates of its steps and a counter.
    The last, smaller batch of an epoch has a graph of its own. Arms run on streams of their own, side by side.
    """

    def __init__(self, config: RunConfig, data: Dataset, steps: int, *, compiled: bool = False) -> None:
        if config.precision == "float64":
            raise ExplrError("precision='float64' cannot be captured: torch's fused SGD reads its learning rate as float32.")
        self._lr = torch.zeros((), device=data.train_labels.device)
        super().__init__(config, data, steps)
        self._network = torch.compile(self.model, dynamic=False) if compiled else self.model
        self._stream = torch.cuda.Stream(self.device)
        self._index = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._epoch_rates = torch.zeros(self.steps_per_epoch, device=self.device)
        self._choices = epoch_choices(len(data.train_labels), config.seed, 0).to(self.device)
        self._sizes = [config.batch_size] * (self.steps_per_epoch - 1)
        self._sizes.append(len(data.train_labels) - sum(self._sizes))
        self._graphs = self._capture()

    def run_epoch(self, epoch: int, after_step: Callable[[], Any] = lambda: None) -> None:
        """Launch one epoch and return at once; :meth:`epoch_results` waits for it."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))  # where a checkpoint may have just been loaded
        with torch.cuda.stream(self._stream):
            self._begin(epoch)
            first = epoch * self.steps_per_epoch
            rates = self._rates(slice(first, first + self.steps_per_epoch))
            self._epoch_rates.copy_(torch.from_numpy(rates))
            self._choices.copy_(epoch_choices(len(self.data.train_labels), self.config.seed, epoch))
            self._index.zero_()
            for size in self._sizes:
                self._graphs[size].replay()
                after_step()

    def step(self, step: int, batch: Choices) -> tuple[Tensor, Tensor, Tensor]:
        """Refuse: the steps of this arm are in its graphs."""
        raise ExplrError("a captured arm takes whole epochs: call run_epoch, or use an Arm.")

    def epoch_results(self, epoch: int) -> tuple[dict[str, float], dict[str, float]]:
        """Wait for the epoch to end; return what it adds to the record."""
        with torch.cuda.stream(self._stream):
            return super().epoch_results(epoch)

    def _make_optimizer(self, lr: float | Tensor = 1.0, fused: bool | None = True) -> torch.optim.SGD:
        return super()._make_optimizer(self._lr, fused)

    def _logits(self, images: Tensor) -> Tensor:
        bfloat16 = self.config.precision == "bfloat16"
        network = self._network if self.model.training else self.model
        # A cache of cast weights would outlive the step that it was captured in.
        with torch.autocast("cuda", torch.bfloat16, enabled=bfloat16, cache_enabled=False):
            logits: Tensor = network(images.contiguous(memory_format=torch.channels_last))
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
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        gc.collect()  # what is freed in the middle of a capture would invalidate it
        with torch.cuda.device(self.device), _convolutions(self.config.precision, benchmark=True):
            for size in sorted(set(self._sizes), reverse=True):
                with torch.cuda.stream(self._stream):
                    for _ in range(3):  # momentum buffers, workspaces and compiled kernels must be there before a capture
                        self._index.zero_()
                        self._device_step(size)
                self._index.zero_()
                self.optimizer.zero_grad()
                graphs[size] = torch.cuda.CUDAGraph()
                pool = next(iter(graphs.values())).pool() if len(graphs) > 1 else None
                with torch.cuda.graph(graphs[size], pool=pool, stream=self._stream):
                    self._device_step(size)
        torch.cuda.synchronize(self.device)
        self.model.load_state_dict(before)
        for buffer in self.momentum().values():
            buffer.zero_()  # as good as none: torch starts the buffer with the first gradient
        return graphs


@contextmanager
def _convolutions(precision: str, *, benchmark: bool = False) -> Iterator[None]:
    """Say what cuDNN may do: use TF32 only where the precision says so, and look for the fastest kernels on request."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=precision == "tf32"):
        yield

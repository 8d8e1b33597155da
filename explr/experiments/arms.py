"""One side of a comparison in training: a network, its optimizer and its learning rates, step by step.

The weights of an exponential run would leave float32 before long. They never need to: multiplying them by a power of two,
with the learning rate multiplied by its square, changes no bit of the functions that follow (the symmetry of normalised
networks; the eps of their norms apart). An arm does so at the start of every epoch, so that its weights keep about the size
that they have under weight decay.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from explr.checks import FloatArray
from explr.equivalence import AdamWSchedule
from explr.errors import ExplrError
from explr.experiments import models
from explr.experiments.data import Choices, Dataset, epoch_choices
from explr.experiments.precision import arithmetic, dtype_of_weights, layout
from explr.experiments.records import Run, RunConfig, call_by_name
from explr.groups import write
from explr.symmetry import scale_weights

_LARGEST_LOG_SCALE = math.log(sys.float_info.max) - 20.0  # the norms of the weights themselves are below e^20


class DivergedError(ExplrError):
    """A loss or a weight is not finite; the message says which, and at which step.

    Attributes:
        runs: where several were trained together, the records of all, with an error in the place of each that has none.
    """

    def __init__(self, message: str, runs: Sequence[Run | DivergedError] = ()) -> None:
        super().__init__(message)
        self.runs = runs


class Arm:
    """A network in training.

    Attributes:
        graph: whether its steps are a CUDA graph.
        config: what it was made from.
        model: the network, initialised from ``config.seed``.
        learning_rates: of every step, and the growth of the weights that they cause.
        trainable: the parameters that are trained, by name.
        optimizer: torch's SGD or AdamW.
        exponent: the weights are 2**exponent times larger than what ``model`` holds (``config.weight_scale`` apart).
        losses: of the steps of the epoch under way, float64 on the device, shape ``(steps_per_epoch,)``.
    """

    graph: ClassVar[bool] = False

    def __init__(self, config: RunConfig, data: Dataset, steps: int) -> None:
        self.config, self.data, self.device = config, data, data.train_labels.device
        self.dtype = dtype_of_weights(config.precision, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reseed the GPUs' generators as well
            classes = int(data.train_labels.max()) + 1
            model = call_by_name(models, config.model, {"num_classes": classes, **config.model_args})
        self._layout = layout(model, config.precision, self.device)
        self.model: nn.Module = model.to(self.device, self.dtype, memory_format=self._layout)
        self.trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if config.one_ulp:
            with torch.no_grad():
                for parameter in self.trainable.values():
                    parameter.copy_(torch.nextafter(parameter, torch.full_like(parameter, torch.inf)))
        if config.weight_scale != 1.0:
            self._rescale(config.weight_scale)
        self.learning_rates = config.learning_rates(steps)
        too_large = np.flatnonzero(self.learning_rates.log_scale > _LARGEST_LOG_SCALE)
        if len(too_large):
            raise ExplrError(
                f"from step {too_large[0]} of {steps} on the weights are e^{_LARGEST_LOG_SCALE:.0f} times as large as under "
                "weight decay, and no record could hold their norms: train for fewer epochs, or with less than "
                f"weight_decay={config.weight_decay}."
            )
        self.optimizer = self._make_optimizer()
        self.steps_per_epoch = -(-len(data.train_labels) // config.batch_size)
        self.exponent = 0
        self.losses = torch.zeros(self.steps_per_epoch, dtype=torch.float64, device=self.device)
        self._right = torch.zeros((), dtype=torch.int64, device=self.device)

    def run_epoch(self, epoch: int) -> None:
        """Train for one epoch. Nothing is read back from the device: :meth:`epoch_results` waits for it."""
        for _ in self.steps(epoch):
            pass

    def steps(self, epoch: int) -> Iterator[int]:
        """Train for one epoch, a step whenever the iterator is advanced; it yields the number of the step."""
        self._begin(epoch)
        choices = epoch_choices(len(self.data.train_labels), self.config.seed, epoch).to(self.device)
        for index, batch in enumerate(choices.batches(self.config.batch_size)):
            step = epoch * self.steps_per_epoch + index
            loss, logits, labels = self.step(step, batch)
            self.losses[index] = loss
            self._right += (logits.argmax(1) == labels).sum()
            yield step

    def step(self, step: int, batch: Choices) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step; return the mean loss and the logits from before it, and the labels."""
        write(self.optimizer.param_groups[0], self._settings(step))
        with arithmetic(self.config.precision, autotune=True):
            return self._step(batch)

    def wait(self) -> None:
        """Return when the device has done all that it was asked to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def epoch_results(self, epoch: int) -> tuple[dict[str, float], dict[str, float]]:
        """Wait for the epoch to end; return the row that it adds to ``Run.history``, and that to ``Run.weight_norms``.

        Raises:
            DivergedError: if a loss or a weight is not finite; the message names the step.
        """
        losses, count = self.losses.cpu(), len(self.data.train_labels)
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            raise DivergedError(
                f"the loss of step {epoch * self.steps_per_epoch + int(bad[0])} is {float(losses[bad[0]])}: the run has "
                "diverged. Lower the learning rate, or the growth that weight decay is equivalent to."
            )
        norms = self._weight_norms(epoch)  # before the test loss, which would only say that something is wrong
        sizes = torch.full((self.steps_per_epoch,), self.config.batch_size, dtype=torch.float64)
        sizes[-1] = count - (self.steps_per_epoch - 1) * self.config.batch_size
        test_loss, test_accuracy = self.evaluate()
        if not math.isfinite(test_loss):
            raise DivergedError(
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
                raise DivergedError(
                    f"the norm of {name} is {norm} after step {step}: the run has diverged. Lower the learning rate."
                )
        norms = [math.ldexp(norm, self.exponent) / self.config.weight_scale for norm in norms]
        return dict(zip(self.trainable, norms, strict=True))

    @torch.no_grad()
    def evaluate(self, batch_size: int = 1000) -> tuple[float, float]:
        """Return the mean loss and the accuracy on the test images, in evaluation mode."""
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.model.eval()
        with arithmetic(self.config.precision):
            for images, labels in self.data.test_batches(batch_size, self.dtype):
                logits = self._logits(images)
                right = (logits.argmax(1) == labels).sum()
                total += torch.stack([F.cross_entropy(logits, labels, reduction="sum").double(), right.double()])
        self.model.train()
        loss, accuracy = (total / len(self.data.test_labels)).tolist()
        return loss, accuracy

    def buffers(self) -> dict[str, dict[str, Tensor]]:
        """Return what the optimizer keeps, by kind and by the name of the trainable tensor; nothing before the first step."""
        kept: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.trainable.items():
            for kind, buffer in self.optimizer.state[parameter].items():
                if buffer is not None:
                    kept.setdefault(kind, {})[name] = buffer
        return kept

    def load_buffers(self, kept: dict[str, dict[str, Tensor]]) -> None:
        """Take over what :meth:`buffers` gave; buffers that a graph knows stay where they are.

        Raises:
            ValueError: if a buffer is not of its tensor's shape.
        """
        for kind, buffers in kept.items():
            for name, buffer in buffers.items():
                if buffer.shape not in ((), self.trainable[name].shape):  # AdamW counts its steps in a number
                    raise ValueError(f"{kind} of {name} has the shape {tuple(buffer.shape)}")
                own = self.optimizer.state[self.trainable[name]]
                if own.get(kind) is not None:
                    own[kind].copy_(buffer)
                else:
                    own[kind] = buffer.clone()

    @property
    def _lr_power(self) -> int:
        """By which power of their size a learning rate goes with the weights."""
        return 1 if self.config.optimizer == "adamw" else 2

    def _make_optimizer(self, lr: float | Tensor = 1.0, fused: bool | None = None) -> torch.optim.Optimizer:
        decay = self.config.weight_decay if self.config.regime == "weight_decay" else 0.0
        decay /= self.config.weight_scale**self._lr_power
        if self.config.optimizer == "adamw":
            return torch.optim.AdamW(self.trainable.values(), lr=lr, weight_decay=decay, fused=fused)
        nesterov, momentum = self.config.optimizer == "nesterov", self.config.momentum
        return torch.optim.SGD(
            self.trainable.values(), lr=lr, momentum=momentum, weight_decay=decay, nesterov=nesterov, fused=fused
        )

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
            logits: Tensor = self.model(images.contiguous(memory_format=self._layout))
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
            scale_weights(self.optimizer, self.trainable.values(), 2.0**-shift)
            for module in self.model.modules():
                if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                    # its input grows as the weights do, in every invariant network of explr.models
                    module.running_mean.mul_(2.0**-shift)
                    module.running_var.mul_(4.0**-shift)

    def _rates(self, steps: slice) -> FloatArray:
        """Return the rates that the weights in ``model`` need: ``learning_rates`` times a power of 2 and the scale squared."""
        log_lr = self.learning_rates.log_lr[steps]
        powers = np.floor(log_lr / math.log(2))
        rates = np.ldexp(np.exp(log_lr - powers * math.log(2)), powers.astype(int) - self._lr_power * self.exponent)
        return self.config.weight_scale**self._lr_power * rates

    def _settings(self, step: int) -> dict[str, float]:
        """Return the hyper-parameters of a step, for weights as large as those in ``model``."""
        schedule, settings = self.learning_rates, {"lr": float(self._rates(slice(step, step + 1))[0])}
        if isinstance(schedule, AdamWSchedule):
            beta1, beta2 = map(float, schedule.betas[step])
            eps = math.exp(schedule.log_eps[step] + self.exponent * math.log(2)) / self.config.weight_scale
            return {**settings, "beta1": beta1, "beta2": beta2, "eps": eps}
        return {**settings, "momentum": float(schedule.momentum[step]), "dampening": float(schedule.dampening[step])}


def side_by_side(arms: Sequence[Arm], epoch: int) -> Iterator[int]:
    """Train several arms for one epoch; yield how many steps were taken, after every round of one step of each.

    On a GPU the arms share it that way: whole epochs would be queued one behind the other.
    """
    for steps in itertools.zip_longest(*(arm.steps(epoch) for arm in arms)):
        yield sum(step is not None for step in steps)

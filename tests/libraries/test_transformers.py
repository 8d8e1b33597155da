"""ExpLR in the Trainer of Hugging Face, which takes optimizer and scheduler as they are, and clips unless told not to."""

import pytest
import torch
from test_loops import TOLERANCE, batches, deviation, evaluate, network, sgd
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from explr import ExpLR

transformers = pytest.importorskip("transformers", reason="needs the extra libraries: pip install '.[libraries]'")
pytest.importorskip("accelerate")

UPDATES = 20


class Task(nn.Module):
    """A network with its loss, in the form that the Trainer calls."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, images, labels):
        logits = self.net(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Clip(transformers.TrainerCallback):
    """Clips where the Trainer would have, if ``max_grad_norm`` were not 0."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.scheduler.clip_grad_norm_(0.5)


def fit(converted, folder, clip=False, resume=False, updates=UPDATES, **options):
    examples = [
        {"images": image, "labels": label} for images, labels in batches() for image, label in zip(images, labels, strict=True)
    ]
    task = Task()
    optimizer = sgd(task.net)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, UPDATES + 1)
    if converted:
        scheduler = ExpLR(optimizer, scheduler, model=task.net)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=updates,
        per_device_train_batch_size=8,
        max_grad_norm=0.5 if clip and not converted else 0.0,
        report_to="none",
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=10,
        **options,
    )
    callbacks = [Clip(scheduler)] if clip and converted else []
    trainer = transformers.Trainer(
        task, arguments, train_dataset=examples, optimizers=(optimizer, scheduler), callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=resume)
    return evaluate(task.net)


@pytest.mark.parametrize(
    "options, clip",
    [({}, False), ({}, True), ({"gradient_accumulation_steps": 2}, False)],
    ids=["plain", "clipping", "accumulating"],
)
def test_the_trainer_computes_the_same(options, clip, tmp_path):
    assert deviation(fit(False, tmp_path / "a", clip, **options), fit(True, tmp_path / "b", clip, **options)) < TOLERANCE


def test_a_checkpoint_resumes_to_the_same_bits(tmp_path):
    whole = fit(True, tmp_path / "a")
    fit(True, tmp_path / "b", updates=10)
    assert torch.equal(whole, fit(True, tmp_path / "b", resume=True))

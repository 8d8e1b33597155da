"""ExpLR in Lightning's loop: an automatic loop with a closure, which steps schedulers by itself, once an epoch or a step."""

import pytest
import torch
from test_loops import BATCHES, EPOCHS, TOLERANCE, batches, deviation, evaluate, network, sgd
from torch.nn import functional as F
from torch.optim import lr_scheduler

from explr import ExpLR

lightning = pytest.importorskip("lightning", reason="needs the extra libraries: pip install '.[libraries]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has much to say about loaders without workers

PLATEAU = {"monitor": "loss", "reduce_on_plateau": True}
SCHEDULES = {
    "epoch": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS),
    "step": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=EPOCHS * BATCHES + 1),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5),
}


class Task(lightning.LightningModule):
    """A classifier whose optimizer is as most people write it."""

    def __init__(self, converted, schedule, clip=None):
        super().__init__()
        self.net, self.converted, self.schedule, self.clip = network(), converted, schedule, clip

    def training_step(self, batch, index):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        optimizer = sgd(self.net)
        scheduler = SCHEDULES[self.schedule](optimizer)
        if self.converted:
            scheduler = ExpLR(optimizer, scheduler, model=self.net)
        more = PLATEAU if self.schedule == "plateau" else {}
        interval = "step" if self.schedule == "step" else "epoch"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval, **more}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        if self.clip and self.converted:
            self.lr_schedulers().clip_grad_norm_(self.clip)
        elif self.clip:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)


def fit(task, folder, epochs=EPOCHS, checkpoint=None, **options):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(task, torch.utils.data.DataLoader(batches(BATCHES), batch_size=None), ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / "last.ckpt")
    return evaluate(task.net)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}], ids=str)
def test_the_trainer_computes_the_same(schedule, options, tmp_path):
    expected = fit(Task(False, schedule), tmp_path, **options)
    assert deviation(expected, fit(Task(True, schedule), tmp_path, **options)) < TOLERANCE


def test_clipping_computes_the_same(tmp_path):
    assert deviation(fit(Task(False, "epoch", clip=0.5), tmp_path), fit(Task(True, "epoch", clip=0.5), tmp_path)) < TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_checkpoint_resumes_to_the_same_bits(schedule, tmp_path):
    whole = fit(Task(True, schedule), tmp_path)
    fit(Task(True, schedule), tmp_path, epochs=2)
    assert torch.equal(whole, fit(Task(True, schedule), tmp_path, checkpoint=tmp_path / "last.ckpt"))

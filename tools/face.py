"""Draw the first figure of the book from records: ``book/_static/face.html`` and, as a picture, ``book/_static/preview.png``.

    python -m tools.face            draw both from the stored records
    python -m tools.face --check    fail if either is not what the records give
    python -m tools.face --run      train the two runs that stand in for full scale, store their records, draw

At full scale the learning rate of Figure 2 climbs through 34 powers of ten; as long as the records of that figure are short it
hardly moves. Two runs with so much weight decay that it climbs through 19 within minutes on one core take their place.
"""

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image

from explr.book.face import card, climb, face
from explr.experiments.catalogue import best_records
from explr.experiments.data import cifar10
from explr.experiments.records import Run, RunConfig
from explr.experiments.training import train
from tools.address import ROOT

PAGE = ROOT / "book" / "_static" / "face.html"
PICTURE = ROOT / "book" / "_static" / "preview.png"
RECORDS = ROOT / "book" / "results" / "face"
IMAGES, BATCH, EPOCHS = 10_000, 64, 20
STEPS = -(-IMAGES // BATCH)
DECAY = RunConfig(
    model="preresnet",
    model_args={"depth": 8, "width": 8},
    schedule="step_decay",
    schedule_args={"lr": 0.1, "milestones": [18 * STEPS]},
    weight_decay=0.0075,  # 15 times the usual one
    batch_size=BATCH,
    epochs=EPOCHS,
)


def pairs(records: Path = RECORDS) -> list[tuple[Run, Run]]:
    """Return the pairs of runs that there are, with weight decay and without: those of Figure 2, and those that stand in."""
    stored = (Run.load(records / "decay-seed0.json"), Run.load(records / "exponential-seed0.json"))
    runs, _ = best_records("figure2")
    return [stored, *([(runs["constant-decay"][0], runs["constant-exponential"][0])] if runs else [])]


def chosen(found: list[tuple[Run, Run]]) -> tuple[Run, Run]:
    """Return the pair whose learning rate climbs farther: Figure 2 as soon as there are long records of it."""
    return max(found, key=lambda pair: climb(pair[1]))


def digest(page: str) -> str:
    """Return what the picture carries to say from which numbers it was drawn."""
    return hashlib.sha256(page.encode()).hexdigest()


def out_of_step(page: str) -> list[str]:
    """Name each of the two files that is not what the records give."""
    wrong = [] if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page else [PAGE.name]
    drawn_from = Image.open(PICTURE).info.get("Description") if PICTURE.exists() else None
    return wrong if drawn_from == digest(page) else [*wrong, PICTURE.name]


def run() -> None:
    """Train the two runs and store their records; each goes on where it was interrupted."""
    images = cifar10().subset(IMAGES, 2_000)
    for arm, config in {"decay": DECAY, "exponential": replace(DECAY, regime="exponential")}.items():
        checkpoint = RECORDS / f"{arm}.checkpoint"
        train(config, images, device="cpu", checkpoint=checkpoint).save(RECORDS / f"{arm}-seed0.json")
        checkpoint.unlink()


def main() -> None:
    """Draw or check the figure; train first, if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="train anew")
    parser.add_argument("--check", action="store_true", help="fail if the files are not what the records give")
    parsed = parser.parse_args()
    if parsed.run:
        RECORDS.mkdir(exist_ok=True)
        run()
    pair = chosen(pairs())
    page = face(*pair)
    if parsed.check:
        if wrong := out_of_step(page):
            sys.exit(f"{' and '.join(wrong)} is not what the records give: run python -m tools.face")
        return
    PAGE.write_text(page, encoding="utf-8")
    card(*pair).savefig(PICTURE, metadata={"Description": digest(page), "Software": None})


if __name__ == "__main__":
    main()

"""Train the classifier whose features compare the embedded images.

``python -m scripts.fit_fashion_classifier`` was run once; its result is part of the repository
(``dsd/features/fashion-classifier.safetensors``). It reads the labelled clean images of
``data/embedded/fashion-mnist.parquet`` and nothing else, brings them to 16x16 as ``prepare`` does
by default, trains on all but the last 2,000 and records the accuracy on those.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from dsd.features.fashion_classifier import LAYERS, WEIGHTS, FashionClassifier
from dsd.utils.shapes import Pixels

__all__ = ["accuracy", "fit", "folded", "labelled_images", "main", "split"]

SOURCE = Path("data/embedded/fashion-mnist.parquet")
NUM_HELDOUT = 2_000
NUM_EPOCHS = 10
BATCH_SIZE = 64
LEARNING_RATE = 5.0e-3
WEIGHT_DECAY = 5.0e-2
LABEL_SMOOTHING = 0.05


def labelled_images(source: Path) -> tuple[Pixels, Int64[Tensor, " b"]]:
    """Clean images at 16x16 (padded by 2, then the mean of 2x2 blocks) and their labels."""
    table = pq.read_table(source)
    pixels = np.stack(
        [np.asarray(Image.open(io.BytesIO(png))) for png in table["image"].to_pylist()]
    )
    padded = functional.pad(torch.from_numpy(pixels)[:, None].float(), (2, 2, 2, 2))
    images = functional.avg_pool2d(padded, 2).round().to(torch.uint8)
    return images, torch.tensor(table["label"].to_pylist(), dtype=torch.int64)


Labelled = tuple[Pixels, Int64[Tensor, " b"]]


def split(data: Labelled) -> tuple[Labelled, Labelled]:
    """Those to train on and, the last ones of the file, those held out."""
    images, labels = data
    return (images[:-NUM_HELDOUT], labels[:-NUM_HELDOUT]), (
        images[-NUM_HELDOUT:],
        labels[-NUM_HELDOUT:],
    )


def fit(data: Labelled, *, seed: int, num_epochs: int = NUM_EPOCHS) -> FashionClassifier:
    """Train from scratch: same seed, thread count and version of torch, same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FashionClassifier()
    model.convs = nn.ModuleList(
        nn.Sequential(conv, nn.BatchNorm2d(layer[1]))
        for conv, layer in zip(model.convs, LAYERS, strict=True)
    )
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, fused=True)
    num_steps = num_epochs * (len(data[0]) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
    for epoch in range(num_epochs):
        losses = []
        for images, labels in _batches(data, generator):
            logits = model.logits(model(images))
            loss = functional.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        print(f"epoch {epoch + 1}/{num_epochs}: loss {torch.stack(losses).mean():.4f}")
    return model.eval()


def _batches(data: Labelled, generator: torch.Generator) -> Iterator[Labelled]:
    """One epoch in random order; full batches only, as batch normalisation likes them."""
    images, labels = data
    order = torch.randperm(len(images), generator=generator)
    for chosen in order.split(BATCH_SIZE):
        if len(chosen) == BATCH_SIZE:
            yield _shifted(images[chosen], generator), labels[chosen]


def _shifted(images: Pixels, generator: torch.Generator) -> Pixels:
    """The batch shifted by up to one pixel; not mirrored, because shoes all point one way."""
    top, left = torch.randint(0, 3, (2,), generator=generator).tolist()
    return functional.pad(images, (1, 1, 1, 1))[..., top : top + 16, left : left + 16]


def folded(model: FashionClassifier) -> FashionClassifier:
    """The same function in evaluation mode, batch normalisation folded into convolutions."""
    plain = FashionClassifier().eval()
    plain.head.load_state_dict(model.head.state_dict())
    for target, pair in zip(plain.convs, model.eval().convs, strict=True):
        assert isinstance(pair, nn.Sequential)
        conv, norm = pair
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        target.load_state_dict(nn.utils.fuse_conv_bn_eval(conv, norm).state_dict())
    return plain


@torch.no_grad()
def accuracy(model: FashionClassifier, data: Labelled) -> float:
    """Fraction of images whose best score is that of their label."""
    images, labels = data
    best = torch.cat([model.logits(model(batch)).argmax(1) for batch in images.split(500)])
    return (best == labels).double().mean().item()


def main() -> None:
    """Read the command line, train, write the weights."""
    parser = argparse.ArgumentParser(description="train the classifier of the embedded images")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, order, shifts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, heldout = split(labelled_images(SOURCE))
    model = fit(train, seed=args.seed)
    plain = folded(model)
    reached = accuracy(plain, heldout)
    used = f"{SOURCE.as_posix()}: all but the last {NUM_HELDOUT} to train, those for accuracy"
    info = {
        "accuracy": f"{reached:.4f}",
        "command": "python -m scripts.fit_fashion_classifier",
        "data": used,
        "seed": str(args.seed),
        "torch": torch.__version__,
    }
    save_file(plain.state_dict(), args.out, metadata=info)
    print(f"{args.out}: accuracy {reached:.4f} on {NUM_HELDOUT} images held out")


if __name__ == "__main__":
    main()

"""How do feature spaces respond to what goes wrong with generated images?

``python -m bench.accuracy.feature_response`` spoils clean clothes in known ways and measures them
in the feature spaces that work offline. Writes ``docs/results/features/response.csv``; about 3
minutes on one core.
"""

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from bench.common import CPU, EMBEDDED, RESULTS, noised, write_rows
from dsd.features.extractor import load_extractor
from dsd.metrics.frechet import frechet_distance
from dsd.selection.proximal import measure
from dsd.utils.images import from_uint8, to_uint8
from dsd.utils.shapes import Pixels
from scripts.fit_fashion_classifier import labelled_images, split

COUNT = 2000
SPACES = ("fashion-classifier", "efficientnet-lite0")


def spoiled(images: Pixels, labels: Tensor, others: Pixels) -> dict[str, Pixels]:
    """Images spoiled in known ways, by what was done to them; ``others`` are held-out ones."""

    def changed(change: Callable[[Tensor], Tensor]) -> Pixels:
        return to_uint8(change(from_uint8(images)))

    few_kinds = images[labels < 5]
    return {
        "nothing (other images)": images,
        "images that the classifier never saw": others,
        **{f"noise, sigma {sigma:g}": noised(images, sigma) for sigma in (0.02, 0.05, 0.1, 0.2)},
        **{
            f"blur, std {std:g} pixels": changed(lambda x, s=std: gaussian_blur(x, [5, 5], [s, s]))
            for std in (0.4, 0.6, 1.0)
        },
        "half of the kinds": few_kinds.repeat(2 + COUNT // len(few_kinds), 1, 1, 1)[:COUNT],
        "a tenth of the images, ten times each": images[: COUNT // 10].repeat(10, 1, 1, 1),
        "darker by a tenth": changed(lambda x: 0.9 * (x + 1) - 1),
        "moved by a pixel": images.roll(1, dims=3),
    }


def main() -> None:
    """Measure everything, print and write the table."""
    (images, labels), (others, _) = split(labelled_images(EMBEDDED))
    sets = spoiled(images[:COUNT], labels[:COUNT], others[:COUNT])
    rows: list[dict[str, object]] = [{"change": k, "images": len(x)} for k, x in sets.items()]
    for name in SPACES:
        extractor = load_extractor(name, device=CPU)
        clean = measure(extractor, images[COUNT : 3 * COUNT], batch_size=500)
        for row, x in zip(rows, sets.values(), strict=True):
            distance = frechet_distance(measure(extractor, x, batch_size=500), clean)
            row[name] = f"{distance:.4g}"
    write_rows(RESULTS / "features/response.csv", rows)
    for row in rows:
        print(*row.values(), sep="\t")


if __name__ == "__main__":
    main()

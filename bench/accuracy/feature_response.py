"""How do feature spaces respond to what goes wrong with generated images?

``python -m bench.accuracy.feature_response`` spoils clean clothes in known ways and measures them
in the feature spaces that work offline. Writes ``docs/results/features/response.csv``; about 3
minutes on one core.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from dsd.features.extractor import load_extractor
from dsd.metrics.frechet import frechet_distance
from dsd.selection.proximal import measure
from dsd.utils.images import from_uint8, to_uint8
from dsd.utils.shapes import Pixels
from pipeline.stage_io.tables import write_csv
from sandbox import ROOT
from scripts.fit_fashion_classifier import SOURCE, labelled_images, split

COUNT = 2000
SPACES = ("fashion-classifier", "efficientnet-lite0")


def spoiled(images: Pixels, labels: Tensor, others: Pixels) -> dict[str, Pixels]:
    """Images spoiled in known ways, by what was done to them.

    Args:
        images: Clean images of the reference's law.
        labels: Kind of each.
        others: Clean images that the fashion-classifier was not trained on.
    """
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))

    def changed(change: Callable[[Tensor], Tensor]) -> Pixels:
        return to_uint8(change(from_uint8(images)))

    def noise(sigma: float) -> Pixels:
        return changed(lambda x: x + sigma * eps)

    def blur(std: float) -> Pixels:
        return changed(lambda x: gaussian_blur(x, [5, 5], [std, std]))

    few_kinds = images[labels < 5]
    repeated = images[: COUNT // 10].repeat(10, 1, 1, 1)
    return {
        "nothing (other images)": images,
        "images that the classifier never saw": others,
        **{f"noise, sigma {sigma:g}": noise(sigma) for sigma in (0.02, 0.05, 0.1, 0.2)},
        **{f"blur, std {std:g} pixels": blur(std) for std in (0.4, 0.6, 1.0)},
        "half of the kinds": few_kinds.repeat(2 + COUNT // len(few_kinds), 1, 1, 1)[:COUNT],
        "a tenth of the images, ten times each": repeated,
        "darker by a tenth": changed(lambda x: 0.9 * (x + 1) - 1),
        "moved by a pixel": images.roll(1, dims=3),
    }


def main() -> None:
    """Measure everything, print and write the table."""
    (images, labels), (others, _) = split(labelled_images(ROOT / SOURCE))
    reference = images[COUNT : 3 * COUNT]
    sets = spoiled(images[:COUNT], labels[:COUNT], others[:COUNT])
    columns = []
    for name in SPACES:
        extractor = load_extractor(name, device=torch.device("cpu"))
        clean = measure(extractor, reference, batch_size=500)
        columns.append(
            [frechet_distance(measure(extractor, x, batch_size=500), clean) for x in sets.values()]
        )
    rows = [
        [what, len(x), *(f"{value:.4g}" for value in values)]
        for what, x, *values in zip(sets, sets.values(), *columns, strict=True)
    ]
    write_csv(ROOT / "docs/results/features/response.csv", ["change", "images", *SPACES], rows)
    for row in rows:
        print(*row, sep="\t")


if __name__ == "__main__":
    main()

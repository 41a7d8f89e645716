"""Frechet distance against clean-fid's, and all metrics against others' on the same features.

``OMP_NUM_THREADS=1 python -m bench.accuracy.frechet`` prints one JSON object. Features are real:
those of EfficientNet-Lite0 (1,280) for the embedded clothes, and beside them 768 of the same
images transposed (2,048 in all). torch-fidelity and prdc take part where they are installed. About
3 minutes on one core, 2 more when the features are not in ``.dsd/cache`` yet.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import cleanfid.fid
import torch
from torch import Tensor

from bench.common import cached_features, clothes, noised
from dsd.evaluation.kid import kernel_distance
from dsd.evaluation.precision_recall import density_coverage, precision_recall
from dsd.metrics.frechet import Moments, frechet_distance, moments

COUNT = 2500
REPETITIONS = 3
PAIRS = 1000
"""Vectors of each set where all pairs are compared."""


def features() -> dict[str, Tensor]:
    """2,048 features of clothes, of other clothes, and of these with faint noise."""
    images = clothes()
    first, second = images[:COUNT], images[COUNT : 2 * COUNT]
    sets = {
        "clothes": first,
        "other clothes": second,
        "other clothes, sigma 0.05": noised(second, 0.05),
    }
    found = {}
    for name, x in sets.items():
        turned = cached_features("efficientnet-lite0", x.mT.contiguous())[:, :768]
        found[name] = torch.cat([cached_features("efficientnet-lite0", x), turned], dim=1)
    return found


def timed(call: Callable[[], float]) -> tuple[float, float, float]:
    """Value, wall seconds and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    value = call()
    return value, time.perf_counter() - wall, time.process_time() - processor


def clean_fid(a: Moments, b: Moments) -> float:
    """clean-fid's distance of the same moments, by SciPy's square root of a matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sqrtm(disp=False), and singular matrices
        arrays = (a.mean.numpy(), a.cov.numpy(), b.mean.numpy(), b.cov.numpy())
        return float(cleanfid.fid.frechet_distance(*arrays))


def race(sets: dict[str, Tensor], dim: int) -> Iterator[dict[str, Any]]:
    """Both implementations in turn; ours factors one covariance each time, as in a run."""
    reference, *others = sets
    fixed = moments(sets[reference][:, :dim])
    frechet_distance(fixed, fixed)
    for name in others:
        ours, theirs = [], []
        for _ in range(REPETITIONS):
            fresh = moments(sets[name][:, :dim])
            theirs.append(timed(lambda m=fresh: clean_fid(m, fixed)))
            ours.append(timed(lambda m=fresh: frechet_distance(m, fixed)))
        pairs = [*zip(theirs, ours, strict=True)]
        yield {
            "features": dim,
            "set": name,
            "distance": ours[0][0],
            "relative_difference": ours[0][0] / theirs[0][0] - 1,
            "ours_seconds": statistics.median(wall for _, wall, _ in ours),
            "clean_fid_seconds": statistics.median(wall for _, wall, _ in theirs),
            "ratio_wall": statistics.median(a[1] / b[1] for a, b in pairs),
            "ratio_processor": statistics.median(a[2] / b[2] for a, b in pairs),
        }


def agreement(sets: dict[str, Tensor]) -> dict[str, Any]:
    """The same features through all implementations."""
    real, generated = (x[:PAIRS, :1280] for x in (*sets.values(),)[::2])
    found: dict[str, Any] = {
        "ours": {
            "frechet": frechet_distance(moments(generated), moments(real)),
            "kernel_distance": kernel_distance(generated, real, seed=0).value,
            **precision_recall(generated, real, k=3)._asdict(),
            **density_coverage(generated, real, k=5)._asdict(),
        },
        "clean-fid": {
            "frechet": clean_fid(moments(generated), moments(real)),
            "kernel_distance": cleanfid.fid.kernel_distance(
                generated.numpy(), real.numpy(), num_subsets=1, max_subset_size=PAIRS
            ),
        },
    }
    if find_spec("torch_fidelity"):
        found["torch-fidelity"] = _torch_fidelity(generated, real)
    if find_spec("prdc"):
        from prdc import compute_prdc

        five = compute_prdc(real.numpy(), generated.numpy(), 5)
        found["prdc"] = {key: float(five[key]) for key in ("density", "coverage")}
    return found


def _torch_fidelity(generated: Tensor, real: Tensor) -> dict[str, float]:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    sides = [fid_features_to_statistics(x) for x in (generated, real)]
    fid = fid_statistics_to_metric(*sides, verbose=False)
    subset = {"kid_subsets": 1, "kid_subset_size": PAIRS, "rng_seed": 0}
    kid = kid_features_to_metric(generated, real, **subset, verbose=False)
    shares = prc_features_to_metric(
        generated, real, prc_neighborhood=3, prc_batch_size=500, save_cpu_ram=True, verbose=False
    )
    return {
        "frechet": float(fid["frechet_inception_distance"]),
        "kernel_distance": float(kid["kernel_inception_distance_mean"]),
        "precision": shares["precision"],
        "recall": shares["recall"],
    }


def main() -> None:
    """Print everything."""
    sets = features()
    result = {
        "threads": torch.get_num_threads(),
        "images": COUNT,
        "repetitions": REPETITIONS,
        "timing": [row for dim in (1280, 2048) for row in race(sets, dim)],
        "agreement": agreement(sets),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""Checks that both trainings share."""


def _check_warmup(warmup_kimg: float, kimg: float) -> None:
    if warmup_kimg > kimg:
        msg = (
            f"warmup_kimg {warmup_kimg:g} exceeds kimg {kimg:g}, so the step size would never "
            "reach learning_rate; lower it"
        )
        raise ValueError(msg)

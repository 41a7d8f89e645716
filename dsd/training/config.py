"""Checks that both trainings share."""


def _check_warmup(lr_warmup_kimg: float, kimg: float) -> None:
    if lr_warmup_kimg > kimg:
        msg = (
            f"lr_warmup_kimg {lr_warmup_kimg:g} exceeds kimg {kimg:g}, so the step size would "
            "never reach learning_rate; lower it"
        )
        raise ValueError(msg)

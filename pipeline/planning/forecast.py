"""``python -m pipeline forecast``: what ``dvc repro`` will do, and how long that takes here."""

from pipeline.params.model import Params
from pipeline.planning.times import expected, remember
from pipeline.runtime.progress import doing, readable
from pipeline.stage_io.paths import Paths
from pipeline.stages import STAGES

__all__ = ["show_forecast"]


def show_forecast(params: Params, paths: Paths) -> None:
    """Print all stages with their times; those that never ran here are estimated from a few steps.

    Raises:
        ParamsError: As the stages would.
        DataError: As the stages would.
    """
    known = expected(params, paths)
    if any(stage not in known for stage in STAGES):
        # Late, because it imports torch.
        from pipeline.planning.plan import costs, measure

        doing("estimating how long the stages take here")
        for cost in costs(params, measure(params, paths)):
            remember(cost.stage, params, paths, cost.seconds, ran=False)
        known = expected(params, paths)
    total = sum(time.seconds for time in known.values())
    estimated = [stage for stage in STAGES if stage in known and not known[stage].ran]
    print(f"{len(STAGES)} stages, about {readable(total)} in all; those up to date are skipped:")
    for number, (stage, what) in enumerate(STAGES.items(), 1):
        time = readable(known[stage].seconds) if stage in known else "?"
        print(f"  {number}  {stage:<9} {time:>12}  {what.description}")
    if estimated:
        print(f"Estimated from a few steps, off by a third or more: {', '.join(estimated)}.")
    print("Ctrl-C keeps what is done, and the same command goes on.")
    print("To see a training while it runs: python -m pipeline watch")

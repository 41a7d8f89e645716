"""``bench.speed.worker`` on a CPU that is set up as for a stage of the pipeline."""

from pipeline.runtime.signals import set_up_cpu

set_up_cpu()

from bench.speed.worker import main  # noqa: E402 - libraries look at the settings when they load

if __name__ == "__main__":
    main()

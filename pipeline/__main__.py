"""The command line: ``python -m pipeline STAGE`` runs one stage; ``dvc repro`` runs them all."""

import argparse
import errno
import json
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dsd.utils.errors import DataError, DsdError, LostProcessError, ParamsError
from pipeline.execution.locks import exclusive
from pipeline.outputs.arguments import COMMANDS, parser_of
from pipeline.runtime import launch
from pipeline.runtime.hosts import num_hosts, refuse_tasks
from pipeline.runtime.signals import StopSignal, die_with_parent, set_up_compiler, set_up_cpu
from pipeline.stage_io.paths import Paths
from pipeline.stages import STAGES, TRAININGS

# Everything else is imported where it is used: --help must not wait for torch or MLflow.
if TYPE_CHECKING:
    from pipeline.params.model import Params
    from pipeline.stage_io.log import StageLog

__all__ = ["main"]

_OTHERS = {
    "preset": "write published settings into params.yaml: preset NAME",
    "check": "check params.yaml, open a few images, run nothing",
    "plan": "measure briefly what time, memory and disk each stage will take",
    "forecast": "say what `dvc repro` will do and how long it takes here",
    "noise": "estimate the noise level of the observations, with checks",
    "demo": "show what shipped models do, without a training: reports/demo.html",
    "watch": "open a page that shows a training while it runs: reports/watch.html",
    "show": "print the final table",
    "compare": "write a page about several runs: compare [FOLDER | RUN_ID ...]",
    "sync": "send to MLflow what it has missed while it was away",
}
_SHOWN = {
    "check": ("pipeline.checks.check", "show_check"),
    "plan": ("pipeline.planning.plan", "show_plan"),
    "forecast": ("pipeline.planning.forecast", "show_forecast"),
    "noise": ("pipeline.reports.noise", "show_noise"),
}
"""Functions of the parameters and the workspace."""

_MEASURABLE_SHARE = 0.2
"""Of a training, from which on its time says how long a whole one takes."""

_DISK_EXIT_CODE = 5
_MEMORY_EXIT_CODE = 7
_MEMORY_REMEDY = (
    "set compute.activation_checkpointing to true or lower compute.micro_batch_size{} "
    "(docs/running.md)"
)
_MEMORY_REMEDIES = {
    "pretrain": _MEMORY_REMEDY.format(""),
    "distill": _MEMORY_REMEDY.format(" and run.eval_batch_size"),
    "evaluate": "lower run.eval_batch_size",
    "sample": "write a folder of files, not one file",
    "denoise": "denoise smaller pictures",
    "export": "free some",
}
_DISK_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "make it readable and writable for this user",
    errno.EPERM: "make it readable and writable for this user",
    errno.EIO: "check the disk",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command in the current folder.

    Returns:
        The exit code: 0, or 2 for bad parameters, 3 for bad data, 4 for numbers that are not
        finite, 5 for a disk that cannot be written, 6 if the stage runs already, 7 if memory is
        short, 128 plus the signal's number if it was stopped. Other errors are ours and leave a
        traceback.
    """
    given = sys.argv[1:] if arguments is None else [*arguments]
    parsed = _parser().parse_args(given[:1] if given[:1] and given[0] in COMMANDS else given)
    command = parsed.command
    if command in COMMANDS:
        parsed = parser_of(command).parse_args(given[1:])
    set_up_cpu()
    paths, stop = Paths(Path.cwd()), StopSignal()
    set_up_compiler(paths.compiled)
    from pipeline.runtime.progress import speaker

    if launch.is_main_process():
        speaker.start(command)
    try:
        if command in COMMANDS:
            import_module(f"pipeline.outputs.{command}").run(parsed, paths)
        else:
            _run(command, parsed.names, paths, stop)
    except DsdError as error:
        if isinstance(error, LostProcessError) and stop.number is None:
            launch.wait_for_termination()
        return launch.report_error(str(error), error.exit_code)
    except KeyboardInterrupt:
        message = f"{command} was stopped; the same command starts it again"
        return launch.report_error(message, 128 + (stop.number or 2))
    except OSError as error:
        if error.errno not in _DISK_REMEDIES:
            raise
        return launch.report_error(_disk_message(error, command), _DISK_EXIT_CODE)
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        return launch.report_error(_memory_message(error, command), _MEMORY_EXIT_CODE)
    finally:
        speaker.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    texts = {name: stage.description for name, stage in STAGES.items()} | _OTHERS | COMMANDS
    lines = [f"  {name:<10}{text}" for name, text in texts.items()]
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="One stage of the pipeline; `dvc repro` runs all that are out of date.",
        epilog="commands:\n"
        + "\n".join(lines)
        + "\n\nAll values are in params.yaml. `python -m pipeline COMMAND --help` has the options "
        + f"of {', '.join(COMMANDS)}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=[*texts], metavar="COMMAND")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the preset, or of runs")
    return parser


def _run(command: str, names: list[str], paths: Paths, stop: StopSignal) -> None:
    if names and command not in {"preset", "compare"}:
        msg = f"{command} takes no name, but {names[0]!r} was given; leave it out"
        raise ParamsError(msg)
    if command in STAGES:
        _run_stage(command, paths, stop)
    elif command in _SHOWN:
        params = _load(paths)
        module, function = _SHOWN[command]
        getattr(import_module(module), function)(params, paths)
    elif command == "preset":
        _preset(names, paths)
    elif command == "compare":
        from pipeline.reports.compare import compare

        print(*compare(names, paths), sep="\n")
    elif command == "show":
        from pipeline.reports.show import show_summary

        show_summary(paths)
    elif command == "demo":
        from pipeline.reports.demo import show_demo

        show_demo(paths)
    elif command == "watch":
        from pipeline.reports.watch import watch

        watch(paths)
    else:
        _sync(paths)


def _run_stage(stage: str, paths: Paths, stop: StopSignal) -> None:
    with closing(stop):
        stop.install()
        die_with_parent()
        if launch.is_worker():
            launch.setup_worker(stage)
            count = hosts = 1
            params = _load(paths)
        else:
            refuse_tasks()
            params = _load(paths)
            hosts = num_hosts() if stage in TRAININGS else 1
            count = launch.num_processes(stage, params, hosts)
        if count * hosts > 1:
            from pipeline.runtime.progress import speaker

            speaker.stop()  # the first of the others speaks
            stop.close()  # this process outlives the others, each of which ends in time
            launch.start(stage, count, hosts)
        elif launch.is_main_process():
            _run_main(stage, params, paths, stop)
        else:
            _run_other(stage, params, paths, stop)


def _run_other(stage: str, params: "Params", paths: Paths, stop: StopSignal) -> None:
    """Only compute, beside the main process."""
    from pipeline.execution.run import run_stage

    module = import_module(f"pipeline.stages.{stage}")
    stop.graceful = True
    run_stage(module, params, paths, launch.NullLog(stop))


def _run_main(stage: str, params: "Params", paths: Paths, stop: StopSignal) -> None:
    from pipeline.planning.times import announcement, remember
    from pipeline.runtime.live import LiveLog
    from pipeline.runtime.progress import readable, say, speaker

    with exclusive(paths.lock(stage), purpose=f"stage {stage}"):
        started = time.monotonic()
        line, speaker.later_seconds = announcement(stage, params, paths)
        say(line)
        # Before the tracker, so that a stage whose code does not even import logs no run.
        module = import_module(f"pipeline.stages.{stage}")
        from pipeline.checks.check import check_before
        from pipeline.execution.run import run_stage

        remarks = check_before(stage, params, paths)
        _remove_finished_before(stage, paths)
        paths.report(stage).mkdir(parents=True, exist_ok=True)
        with (
            _tracked(stage, params, paths, stop) as tracked,
            LiveLog(stage, paths, tracked, speaker) as log,
        ):
            speaker.each = log.write
            for remark in remarks:
                log.say(remark)
            stop.graceful = STAGES[stage].trains
            run_stage(module, params, paths, log)
            # The work is done; a signal during the last seconds of tracking must not undo it.
            stop.graceful = True
            # What an earlier process did of a training is not in this one's time.
            share = speaker.share_of_this_process() if STAGES[stage].trains else 1.0
            if share > _MEASURABLE_SHARE:
                remember(stage, params, paths, (time.monotonic() - started) / share, ran=True)
            if stage == "evaluate":
                speaker.begin("writing the report")
                # Not in the stage: other words on a page must not repeat an evaluation.
                from pipeline.reports.report import write_report

                write_report(params, paths, seconds=time.monotonic() - started)
            speaker.begin("sending the numbers to MLflow")
        say(f"{stage}: done in {readable(time.monotonic() - started)}")


def _tracked(
    stage: str, params: "Params", paths: Paths, stop: StopSignal
) -> AbstractContextManager["StageLog"]:
    """The log of a stage; MLflow gets its numbers where MLflow is installed."""
    try:
        from pipeline.tracking import tracker as tracking
    except ModuleNotFoundError as error:
        if error.name != "mlflow":
            raise
        from pipeline.runtime.progress import UntrackedLog

        log = UntrackedLog(stage, stop)
        log.say(
            "tracking: MLflow is not installed, so nothing is tracked. To track, install the "
            "packages of requirements.lock"
        )
        return nullcontext(log)
    return tracking.run(stage, params, paths, stop=stop)


def _remove_finished_before(stage: str, paths: Paths) -> None:
    """Delete the states of other stages' complete trainings.

    That this stage begins shows that DVC has noted them.
    """
    from pipeline.execution.checkpoints import remove_finished

    for other in TRAININGS:
        if other != stage:
            remove_finished(paths.state(other), paths.root)


def _load(paths: Paths) -> "Params":
    from pipeline.params.reader import load_params

    return load_params(paths.root)


def _preset(names: list[str], paths: Paths) -> None:
    from pipeline.params.presets import apply_preset, preset_names

    if len(names) != 1:
        msg = f"preset needs a name: {', '.join(preset_names())}"
        raise ParamsError(msg)
    changed = apply_preset(names[0], paths.root)
    for key, value in changed.items():
        print(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")
    print(f"OK: {len(changed)} values of params.yaml changed to those of {names[0]}")


def _sync(paths: Paths) -> None:
    from pipeline.tracking import tracker as tracking

    complete, waiting = tracking.sync(paths)
    if waiting:
        msg = f"{waiting} runs still wait for MLflow ({complete} sent); try again when it answers"
        raise DataError(msg)
    print(f"OK: MLflow has everything ({complete} runs completed now)")


def _disk_message(error: OSError, command: str) -> str:
    where = error.filename or f"the files of {command}"
    remedy = _DISK_REMEDIES[error.errno or 0]
    return (
        f"cannot read or write {where}: {error.strerror}; {remedy} and run the same command "
        "again, it continues where it was"
    )


def _is_of_memory(error: Exception) -> bool:
    """Whether Python, or torch on a GPU or on the CPU, got no memory; without importing torch."""
    out = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return out or isinstance(error, MemoryError)


def _memory_message(error: Exception, command: str) -> str:
    remedy = _MEMORY_REMEDIES.get(command, "lower data.max_images")
    reason = str(error).partition("\n")[0].rstrip(". ") or "out of memory"
    return f"{command}: {reason}; {remedy}, or end other programs that take memory"


if __name__ == "__main__":
    sys.exit(main())

"""What all tests share: reproducible hypothesis, one thread, no telemetry, no user's settings."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import jaxtyping
import psutil
import pytest
from hypothesis import settings

settings.register_profile("dsd", deadline=None, derandomize=True)
settings.load_profile("dsd")

# Before anything imports torch, Prefect or MLflow. One thread: the same bytes on every machine,
# and no oversubscription where processes are tested.
os.environ.update(
    OMP_NUM_THREADS="1",
    DO_NOT_TRACK="true",
    DVC_NO_ANALYTICS="true",
    DVC_STUDIO_OFFLINE="true",
    MLFLOW_DISABLE_TELEMETRY="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="600",
    GIT_AUTHOR_NAME="test",
    GIT_AUTHOR_EMAIL="test@example.org",
    GIT_COMMITTER_NAME="test",
    GIT_COMMITTER_EMAIL="test@example.org",
)
for name in [*os.environ]:
    if name.startswith(
        ("MLFLOW_TRACKING", "MLFLOW_EXPERIMENT", "PREFECT_API", "DVC_EXP", "DVC_ROOT")
    ):
        del os.environ[name]

# A runner in the background (`nohup make test &`) hands down ignored signals; the processes under
# test must start with what a terminal gives them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

LONG = (Path(__file__).parent / "long.txt").read_text().split()
"""Files that take more than some seconds, the longest first; ``make fast`` leaves them out."""

SAME_PROCESS = {"tests/flows/test_flow.py": "tests/end_to_end/test_pipeline.py"}
"""Files that share a fixture which takes longer than either."""


def pytest_collection_modifyitems(items):
    """Begin with the long files, so that no process works on one of them alone at the end."""
    places = {name: place for place, name in enumerate(LONG)}

    def place(item):
        return places.get(item.path.relative_to(Path(__file__).parent).as_posix(), len(LONG))

    for item in items:
        if place(item) < len(LONG):
            item.add_marker("long")
    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each process whole files."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return SAME_PROCESS.get(file, file)

    return ByFile(config, log)


_prefect_homes = pytest.StashKey[tempfile.TemporaryDirectory]()

MEMORY = Path("/dev/shm")


def has_room_in_memory():
    """Whether temporary files can lie in memory: a new MLflow store waits for a disk for seconds.

    Tests execute some of them, which not every system allows there.
    """
    if not MEMORY.is_dir() or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return False
    free = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available)
    return free > 6 * 2**30


def pytest_configure(config):
    if "TMPDIR" not in os.environ and has_room_in_memory():
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="dsd-prefect-", ignore_cleanup_errors=True)
        config.stash[_prefect_homes] = folder
        os.environ["PREFECT_HOME"] = folder.name


def pytest_unconfigure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.stash[_prefect_homes].cleanup()


@pytest.fixture(scope="module", autouse=True)
def shapes_checked_in_the_library(request):
    """Check shapes in tests of ``dsd`` alone: elsewhere a fifth of the time would go to it."""
    library = Path(__file__).parent / "dsd"
    jaxtyping.config.update("jaxtyping_disable", not request.path.is_relative_to(library))
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory):
    """Make folders with Prefect's data base in them, whose tables take 15 s to make."""
    from flows.services.prefect_server import make_database

    def new():
        make_database()  # in PREFECT_HOME, once for all processes of tests
        home = tmp_path_factory.mktemp("prefect")
        shutil.copy(Path(os.environ["PREFECT_HOME"]) / "prefect.db", home)
        return home

    return new


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """A clone in which the whole pipeline has run once, without a network where that is possible.

    Tests share it: each starts with ``back_to_the_first_run()``.
    """
    from sandbox.workspace import FirstRun, can_cut_the_network, clone

    offline = can_cut_the_network()
    # A teacher's training that is long enough to be interrupted.
    clone_of_this = clone(tmp_path_factory.mktemp("clone"), **{"pretrain.kimg": 3.2})
    return FirstRun(clone_of_this.root, offline=offline)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A workspace in which every stage has run once."""
    from stage_helpers import png, random_images, write_parquet
    from tiny_stages import run, tiny

    from pipeline.stage_io.paths import Paths
    from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain

    root = tmp_path_factory.mktemp("trained")
    write_parquet(root / "images.parquet", [png(image) for image in random_images(150, 8, 8)])
    paths = Paths(root)
    for stage in (prepare, corrupt, pretrain, distill, evaluate):
        run(stage, tiny(), paths)
    return paths


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """All stages once with values away from their defaults, and what torch computed in them."""
    from tiny_run import Run

    return Run(tmp_path_factory.mktemp("tiny_run"))


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of that workspace, to change; its trainings are forgotten."""
    from pipeline.stage_io.paths import Paths

    shutil.copytree(trained.root, tmp_path / "copy")
    paths = Paths(tmp_path / "copy")
    shutil.rmtree(paths.state("pretrain").parent)
    return paths

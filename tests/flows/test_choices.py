"""What a form's values mean, and which the server refuses."""

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from actionzoo.errors import UserError
from actionzoo.params import Params, load_params
from flows import deployments
from flows.choices import STEPS, chosen_models, targets_of

FLOWS = [getattr(deployments, name) for name in ("prepare", "train", "evaluate", "benchmark", "reproduce", "zoo")]
SLOWFAST = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params()


def refused(**parameters: object) -> str:
    """What the server says of the parameters of `zoo/zoo`; '' if it takes them."""
    schema = parameter_schema(deployments.zoo).model_dump_for_openapi()
    try:
        validate(parameters, schema, raise_on_error=True, ignore_required=True)
    except ValidationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("function", FLOWS, ids=lambda each: each.fn.__name__)
def test_each_field_of_a_form_is_described_and_may_be_left_as_it_is(function):
    schema = parameter_schema(function)
    assert schema.required == []
    assert all(field["description"] for field in schema.properties.values())
    menu = schema.properties["models"]["anyOf"][0]
    assert menu["items"]["enum"] == load_params().models()


@pytest.mark.parametrize("word", [SLOWFAST, "slowfast_r50_video", "slowfast_*", "*_ig65m_*", "ir?sn*"])
def test_a_name_a_part_of_it_or_a_pattern_is_a_model(word):
    assert refused(models=[word]) == ""


@pytest.mark.parametrize("word", ["slowfst_r50_video", "slowfast r50", "", "../x", "$(id)"])
def test_the_server_refuses_what_cannot_be_a_model_and_lists_the_names(word):
    said = refused(models=[word])
    assert "'models[0]'" in said and "is not one of" in said and SLOWFAST in said


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"data": "kinetics"}, "'kinetics' is not one of ['demo', 'kinetics400', 'mirror']"),
        ({"what": ["tran"]}, "'tran' is not one of ['prepare', 'train', 'evaluate', 'benchmark', 'report']"),
        ({"cpu_slots": 0}, "0 is less than the minimum of 1"),
        ({"gpus": ["0", "first"]}, "'first' does not match"),
        ({"dask": "10.0.0.1"}, "'10.0.0.1' does not match"),
        ({"force": "yes"}, "'yes' is not of type 'boolean'"),
    ],
)
def test_the_server_refuses_other_wrong_values(parameters, words):
    assert words in refused(**parameters)


def test_the_server_takes_what_each_field_can_be():
    for parameters in (
        {"data": None, "gpus": None, "dask": None, "models": [], "what": []},
        {"data": "demo", "gpus": [], "dask": "local", "what": ["train", "report"], "cpu_slots": 1},
        {"gpus": ["0", "GPU-8f6d1c0e-aa", "MIG-8f6d1c0e-aa"], "dask": "tcp://10.0.0.1:8786"},
    ):
        assert refused(**parameters) == ""


def test_models_come_in_the_order_of_params_each_once(params):
    assert chosen_models(params, ["slowfast_r50_video", "*_R50_VIDEO_*"]) == (SLOWFAST,)
    found = chosen_models(params, ["slowfast_*", "ircsn_*"])
    assert found == tuple(name for name in params.models() if not name.startswith("ipcsn"))
    assert chosen_models(params, []) == tuple(params.models())


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("r50_4x16x1", "part of the names of 3 models"),
        ("slowfst_r50_video", "recipes.slowfst_r50_video is unknown"),
        ("slowfst_*", "no model fits the pattern slowfst_*; did you mean slowfast?"),
    ],
)
def test_a_word_that_is_no_single_model_is_one_sentence(params, word, words):
    with pytest.raises(UserError) as refused:
        chosen_models(params, [word])
    assert words in str(refused.value)


def test_steps_of_some_models_are_their_stages(params):
    assert targets_of(params, [SLOWFAST], ["prepare", "evaluate"]) == ("resize@256", f"evaluate@{SLOWFAST}")


def test_steps_of_all_models_are_groups_of_stages(params):
    found = targets_of(params, params.models(), STEPS)
    assert found == ("frames@320", "frames@256", "resize@256", "train", "evaluate", "benchmark", "report")


def test_a_report_of_some_models_is_refused(params):
    with pytest.raises(UserError, match=r"all 17 models, and this run builds 1 of them; leave `models` empty"):
        targets_of(params, [SLOWFAST], ["evaluate", "report"])

"""Values as people type them."""

from typing import get_args

import pytest
import typer

from actionzoo import recipe
from actionzoo.commands import arguments
from actionzoo.commands.arguments import number, one_of, present_spelling, seconds, whole
from actionzoo.jobs import evaluate_checkpoint


@pytest.mark.parametrize(
    ("typed", "spelled"),
    [
        ("M c.pth --topk 1 5", "M c.pth --topk 1 --topk 5"),
        ("M c.pth --topk 1 --topk 5", "M c.pth --topk 1 --topk 5"),
        ("M c.pth --topk 1 5 10 --plain", "M c.pth --topk 1 --topk 5 --topk 10 --plain"),
        ("--topk 1 5 M c.pth", "--topk 1 --topk 5 M c.pth"),
        ("M c.pth --topk=1 5", "M c.pth --topk=1 --topk 5"),
        (
            "M c.pth --eval top_k_accuracy mean_class_accuracy",
            "M c.pth --eval top_k_accuracy --eval mean_class_accuracy",
        ),
        ("M --eval top_k_accuracy c.pth", "M --eval top_k_accuracy c.pth"),
        ("M --eval top_k_accuracy mean_clas_accuracy", "M --eval top_k_accuracy --eval mean_clas_accuracy"),
        ("a b --weights 1 .5 1e-1", "a b --weights 1 --weights .5 --weights 1e-1"),
        ("--weights 1 2 a b", "--weights 1 --weights 2 a b"),
        ("a.pth v.mp4 --row X --top 3", "a.pth v.mp4 --model X --top 3"),
        ("a.pth v.mp4 --row=X", "a.pth v.mp4 --model=X"),
        ("M -- --topk 1 5 --row", "M -- --topk 1 5 --row"),
        ("--top 3 4", "--top 3 4"),
        ("", ""),
    ],
)
def test_older_forms_become_the_present_ones(typed, spelled):
    assert present_spelling(typed.split()) == spelled.split()


@pytest.mark.parametrize("text", ["1", "7", "2147483647"])
def test_a_whole_number_is_read(text):
    assert whole(1)(text) == int(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.0", "1e3", "٣", "", "9" * 5000, "2147483648", " 1"])
def test_what_is_no_whole_number_from_1_is_refused(text):
    with pytest.raises(typer.BadParameter, match="is no whole number from 1 to 2147483647"):
        whole(1)(text)


@pytest.mark.parametrize("text", ["0", "-2", "nan", "inf", "x", ""])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(typer.BadParameter, match="is no number of seconds above 0"):
        seconds(text)


def test_numbers_are_finite():
    assert number("-2.5e-1") == -0.25 and number(3) == 3.0
    with pytest.raises(typer.BadParameter, match="'nan' is no number"):
        number("nan")


def test_a_choice_is_refused_with_the_nearest():
    assert one_of(("train", "val"))("val") == "val"
    with pytest.raises(typer.BadParameter, match=r"'vall' is unknown; did you mean val\? \(train, val\)"):
        one_of(("train", "val"))("vall")


def test_choices_are_those_of_the_types_behind_them():
    from actionzoo.params.settings import Runtime

    assert get_args(arguments.Split) == get_args(recipe.Split)
    assert get_args(arguments.Precision) == get_args(Runtime.__annotations__["precision"])
    assert get_args(arguments.Device) == get_args(Runtime.__annotations__["device"])
    assert arguments.MEASURES == evaluate_checkpoint.MEASURES

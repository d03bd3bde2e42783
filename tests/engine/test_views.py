"""Which views are taken of those that were kept, and what their average is."""

import pytest
import torch

from actionzoo.engine.views import average, average_views, choose, choose_number, read_views
from actionzoo.errors import UserError
from tests.engine.view_files import views_file
from tests.models.reference import read_reference


def test_views_are_read_as_they_were_written(tmp_path):
    logits = views_file(tmp_path / "row", fingerprint="12345678", labels=[1, -1, 0])
    views = read_views(tmp_path / "row")
    assert torch.equal(views.logits, logits) and views.labels.tolist() == [1, -1, 0]
    assert views.video_ids == ["clip000", "clip001", "clip002"] and views.classes == ["a", "b"]
    assert (views.num_clips, views.num_crops, views.num_views) == (2, 3, 6)
    assert views.about["fingerprint"] == "12345678" and views.about["model"] == "row"


def test_another_safetensors_file_is_told(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights.safetensors has no view logits"):
        read_views(tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="is not there"):
        read_views(tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["prob", "score"])
def test_the_average_over_all_views_is_the_references_formula(tmp_path, kind):
    logits = views_file(tmp_path / "row", clips=200)
    plain = average_views(logits.flatten(0, 1), 6, kind)
    torch.testing.assert_close(average(read_views(tmp_path / "row"), kind), plain, rtol=0, atol=1e-6)


def test_averages_are_the_references():
    for case in read_reference("evaluation/average_clips.json")["cases"]:
        logits = torch.tensor(case["cls_score"])
        for kind in ("prob", "score"):
            known = torch.tensor(case[f"average_clips_{kind}"]["values"])
            torch.testing.assert_close(average_views(logits, case["num_segs"], kind), known, rtol=0, atol=1e-6)


def test_views_are_averaged_after_the_softmax_or_before():
    logits = torch.tensor([[0.0, 2.0], [4.0, 0.0]])
    assert average_views(logits, 2, "score").tolist() == [[2.0, 1.0]]
    expected = (logits.softmax(1)[0] + logits.softmax(1)[1]) / 2
    assert average_views(logits, 2, "prob")[0].tolist() == pytest.approx(expected.tolist())


def test_chosen_views_alone_are_averaged(tmp_path):
    logits = views_file(tmp_path / "row")
    found = average(read_views(tmp_path / "row"), "score", [1, 4])
    torch.testing.assert_close(found, (logits[:, 1] + logits[:, 4]) / 2)


@pytest.fixture
def thirty(tmp_path):
    views_file(tmp_path / "row", clips=1, num_clips=10)
    return read_views(tmp_path / "row")


def test_clips_are_spread_over_the_video_and_one_crop_is_the_centre(thirty):
    assert choose(thirty, 10, 3) == list(range(30))
    assert choose(thirty, 1, 1) == [25]  # crops come left, right, centre
    assert choose(thirty, 2, 1) == [22, 27]
    assert choose(thirty, 5, 2) == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]


def test_more_views_than_there_are_cannot_be_chosen(thirty):
    for clips, crops in [(11, 1), (1, 4), (0, 1)]:
        with pytest.raises(UserError, match=rf"{clips}x{crops} views are asked for, there are 10x3"):
            choose(thirty, clips, crops)


def test_a_number_of_views_takes_the_centre_first(thirty):
    assert choose_number(thirty, 1) == [25] and choose_number(thirty, 10) == list(range(20, 30))
    assert choose_number(thirty, 30) == list(range(30))
    for number in range(1, 31):
        assert len(set(choose_number(thirty, number))) == number
    half = choose_number(thirty, 20)
    assert len({view % 10 for view in half if view < 20}) == 10  # one more view of each clip


def test_one_crop_is_the_only_one_there_is(tmp_path):
    views_file(tmp_path / "row", num_crops=1)
    views = read_views(tmp_path / "row")
    assert choose(views, 2, 1) == [0, 1] and choose_number(views, 1) == [1]

"""Published weights by a model's name: which file, which network, from which address."""

import dataclasses
import hashlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actionzoo.errors import UserError
from actionzoo.kinetics.serve import serve
from actionzoo.params import Params, load_params
from actionzoo.weights.checkpoints import open_checkpoint
from actionzoo.weights.download import fetch_weights
from actionzoo.weights.initial import check_initial_weights, initial_weights, load_initial_weights
from actionzoo.weights.load import import_weights
from actionzoo.weights.published import PublishedFile, fetch_published, other_network, published_file, published_files
from actionzoo.zoo import build_model

PROJECT = Path(__file__).resolve().parents[2]
ROW = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
IMPORTED = "ircsn_ig65m_pretrained_bnfrozen_r50_32x2x1_58e_kinetics400_rgb"
FIVE = "slowfast_r50_256p_8x8x1_256e_kinetics400_rgb"
ROWS = list(load_params(PROJECT / "params.yaml").recipes)


@pytest.fixture(autouse=True)
def swept(tmp_path, monkeypatch):
    monkeypatch.delenv("ACTIONZOO_WEIGHTS", raising=False)
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


def as_published(file: PublishedFile, folder: Path) -> Path:
    """A file of the published structure: every tensor of its network, all values alike so that it is small."""
    with torch.device("meta"):
        shapes = build_model(file.model, 400).state_dict()
    state = {
        name: torch.zeros((), dtype=torch.int64)
        if name.endswith("num_batches_tracked")
        else torch.full((1,), 0.5).expand(tensor.shape)
        for name, tensor in shapes.items()
    }
    content = io.BytesIO()
    torch.save({"meta": {"epoch": 58, "mmaction_version": "0.14.0"}, "state_dict": state}, content)
    name = f"{file.name.rpartition('-')[0]}-{hashlib.sha256(content.getvalue()).hexdigest()[:8]}.pth"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content.getvalue())
    return folder / name


def with_address(params: Params, file: PublishedFile, address: str, mirrors: tuple[str, ...] = ()) -> Params:
    published = dataclasses.replace(params.published[file.model_name], **{file.kind: address})
    return dataclasses.replace(
        params,
        published={**params.published, file.model_name: published},
        mirrors={address.rsplit("/", 1)[-1]: mirrors},
    )


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_the_weights_of_every_model_are_had_by_its_name(params, tmp_path, row):
    file = published_file(params, row)
    path = as_published(file, tmp_path / "site")
    with serve(tmp_path / "site") as url:
        here = with_address(params, file, f"{url}/{path.name}")
        out, report = import_weights(row, params=here, cache=tmp_path / "weights")
    assert report.head == "loaded" and not report.missing
    opened = open_checkpoint(row, params=here, root=tmp_path)
    assert opened.identity.model == file.model and len(opened.identity.classes) == 400
    assert out == tmp_path / "weights" / f"{row}.pth"


def test_the_numbers_of_a_file_are_those_that_were_published_for_it(params):
    numbers = {row: (file.kind, file.top1, file.top5) for row in ROWS if (file := published_file(params, row))}
    assert len(numbers) == 17
    assert numbers[IMPORTED] == ("infer_ckpt", 79.0, 94.2)
    assert {row for row, (kind, _, _) in numbers.items() if kind == "infer_ckpt"} == {
        row for row, published in params.published.items() if published.ckpt is None
    }


def test_one_published_file_needs_another_network_than_its_recipe(params):
    others = {row: other_network(published_file(params, row), params.recipes[row].model) for row in ROWS}
    assert {row: changes for row, changes in others.items() if changes} == {FIVE: {"fusion_kernel": 5}}


def test_imported_weights_keep_their_network_when_the_file_is_renamed(params, tmp_path):
    path = as_published(published_file(params, FIVE), tmp_path / "site")
    here = with_address(params, published_file(params, FIVE), str(path))
    out, _ = import_weights(FIVE, params=here, out=tmp_path / "mine.pth")
    opened = open_checkpoint(out, params=params)
    assert opened.identity.model_name == FIVE and opened.identity.model.fusion_kernel == 5


def test_a_training_cannot_start_from_weights_of_another_network_and_says_what_to_set(params, tmp_path):
    here = params.changed(FIVE, init={"weights": FIVE})
    with pytest.raises(UserError, match=rf"set fusion_kernel: 5 in datasets\.demo\.overrides\.{FIVE}\.model"):
        check_initial_weights(initial_weights(here, FIVE), params.recipes[FIVE].model)
    path = as_published(published_file(params, FIVE), tmp_path / "site")
    here = with_address(here, published_file(params, FIVE), str(path)).changed(FIVE, model={"fusion_kernel": 5})
    report = load_initial_weights(build_model(here.recipe(FIVE).model, 4), initial_weights(here, FIVE), tmp_path)
    assert report.head == "fresh, for 4 classes: the file's has 400"


def test_a_training_starts_from_a_model_that_has_imported_weights_alone(params, tmp_path):
    file = published_file(params, IMPORTED)
    path = as_published(file, tmp_path / "site")
    here = with_address(params, file, str(path)).changed(ROW, init={"weights": IMPORTED})
    network = build_model(params.recipes[ROW].model, 400)
    assert load_initial_weights(network, initial_weights(here, ROW), tmp_path).head == "loaded"


# Addresses

GONE = "http://127.0.0.1:9"


def small(tmp_path: Path, name: str = "r50_20200101") -> Path:
    (tmp_path / "site").mkdir()
    path = tmp_path / "site" / f"{name}-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    path.write_bytes(b"weights")
    return path


def get(tmp_path: Path, address: str, mirrors: tuple[str, ...] = ()) -> Path:
    return fetch_weights(address, tmp_path / "weights", mirrors=mirrors, retries=1, backoff_seconds=0.01)


def test_a_folder_of_ones_own_serves_before_the_first_host(tmp_path, monkeypatch):
    path = small(tmp_path)
    monkeypatch.setenv("ACTIONZOO_WEIGHTS", str(path.parent))
    assert get(tmp_path, f"{GONE}/{path.name}") == path
    assert fetch_weights(f"{GONE}/{path.name}", tmp_path / "weights") == path  # of init.weights, too


def test_a_url_of_ones_own_serves_before_the_first_host(tmp_path, monkeypatch):
    path = small(tmp_path)
    with serve(path.parent) as url:
        monkeypatch.setenv("ACTIONZOO_WEIGHTS", f"{url}/")
        assert get(tmp_path, f"{GONE}/deep/{path.name}").read_bytes() == b"weights"


def test_what_ones_own_place_lacks_comes_from_the_first_host(tmp_path, monkeypatch):
    path = small(tmp_path)
    (tmp_path / "empty").mkdir()
    with serve(path.parent) as url, serve(tmp_path / "empty") as empty:
        for place in (str(tmp_path / "empty"), empty):
            monkeypatch.setenv("ACTIONZOO_WEIGHTS", place)
            assert get(tmp_path, f"{url}/{path.name}").read_bytes() == b"weights"
            shutil.rmtree(tmp_path / "weights")


def test_a_place_of_ones_own_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ACTIONZOO_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"ACTIONZOO_WEIGHTS is .*nowhere, which is neither a folder nor a URL"):
        get(tmp_path, f"{GONE}/r50-0badc0de.pth")


@pytest.mark.parametrize("first", ["no host", "no file", "a page instead"])
def test_a_second_address_serves_where_the_first_host_is_gone(tmp_path, first):
    path = small(tmp_path)
    (tmp_path / "first").mkdir()
    if first == "a page instead":
        (tmp_path / "first" / path.name).write_bytes(b"<html>this project has moved</html>")
    with serve(path.parent) as second, serve(tmp_path / "first") as url:
        address = f"{GONE if first == 'no host' else url}/{path.name}"
        assert get(tmp_path, address, (f"{second}/{path.name}",)).read_bytes() == b"weights"


def test_a_second_address_may_have_another_name_but_not_other_bytes(tmp_path):
    path = small(tmp_path)
    other = path.rename(path.with_name("pytorch_model.bin"))
    found = get(tmp_path, f"{GONE}/{path.name}", (str(other),))
    assert (found.name, found.read_bytes()) == (path.name, b"weights")
    shutil.rmtree(tmp_path / "weights")
    other.write_bytes(b"others")
    with pytest.raises(UserError, match="it is damaged"):
        get(tmp_path, f"{GONE}/{path.name}", (str(other),))


def test_without_the_internet_it_says_what_to_put_where(tmp_path):
    with pytest.raises(UserError) as error:
        get(tmp_path, f"{GONE}/r50-0badc0de.pth", (f"{GONE}/mirror/r50-0badc0de.pth",))
    said = str(error.value)
    assert f"{GONE}/r50-0badc0de.pth could not be fetched" in said and f"{GONE}/mirror/r50-0badc0de.pth" in said
    assert f"put r50-0badc0de.pth into {tmp_path / 'weights'}/" in said and "ACTIONZOO_WEIGHTS" in said


def test_the_second_address_stands_in_params_yaml(params, tmp_path):
    name = published_files(params, ROW)["ckpt"].name
    text = (PROJECT / "params.yaml").read_text()
    shutil.copy(PROJECT / "published.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text(f"{text}\nmirrors:\n  {name}: [https://example.org/copy.pth]\n")
    here = load_params(tmp_path / "params.yaml")
    assert published_file(here, ROW).mirrors == ("https://example.org/copy.pth",)
    (tmp_path / "params.yaml").write_text(f"{text}\nmirrors:\n  x{name}: [https://example.org/copy.pth]\n")
    with pytest.raises(UserError, match=rf"mirrors\.x{name} is no published file's base name; did you mean {name}"):
        load_params(tmp_path / "params.yaml")


def test_a_published_file_of_ones_own_is_found_by_its_base_name(params, tmp_path, monkeypatch):
    file = published_file(params, IMPORTED)
    path = as_published(file, tmp_path / "site")
    here = with_address(params, file, f"{GONE}/{path.name}")
    monkeypatch.setenv("ACTIONZOO_WEIGHTS", str(path.parent))
    assert fetch_published(published_file(here, IMPORTED), tmp_path / "weights") == path


def test_a_mistyped_model_is_told_the_near_one(tmp_path):
    for name in ("params.yaml", "published.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "actionzoo.cli", "weights", ROW.replace("bnfrozen", "bnfrosen")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and f"did you mean {ROW}?" in done.stderr


def test_a_models_file_comes_from_its_second_address(params, tmp_path):
    file = published_file(params, IMPORTED)
    path = as_published(file, tmp_path / "site")
    with serve(path.parent) as url:
        here = with_address(params, file, f"{GONE}/{path.name}", (f"{url}/{path.name}",))
        _, report = import_weights(IMPORTED, params=here, cache=tmp_path / "weights")
    assert report.head == "loaded"

"""Weights in: files as others write them, made out of the zoo's own networks, so that logits can be compared."""

import datetime
import hashlib
import http.server
import io
import ipaddress
import os
import pickle
import re
import shutil
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from actionzoo.engine.checkpoint import trained_weights
from actionzoo.errors import UserError
from actionzoo.kinetics.serve import FolderHandler, serve
from actionzoo.models.csn import CSN
from actionzoo.models.slowfast import SlowFast
from actionzoo.params import load_params
from actionzoo.recipe import as_dict
from actionzoo.weights.download import fetch_weights
from actionzoo.weights.formats import CLASSIFIER
from actionzoo.weights.load import import_weights, load_weights

PROJECT = Path(__file__).resolve().parents[2]
SLOWFAST = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
CSN_ROW = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"


def slowfast(fusion_kernel: int = 5, num_classes: int = 6) -> SlowFast:
    return SlowFast(
        slow_depth=50, fast_depth=50, alpha=8, beta=1 / 8, fusion_kernel=fusion_kernel, num_classes=num_classes
    )


def csn(bottleneck: str = "ir", depth: int = 50, num_classes: int = 6) -> CSN:
    return CSN(depth=depth, bottleneck=bottleneck, norm_eval=True, bn_frozen=True, num_classes=num_classes)


def lived_in(model: nn.Module) -> nn.Module:
    """With statistics that no fresh network has: whatever is not loaded shows in the logits."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 0.4 + 0.2)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
                module.running_mean.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(module.bias.shape, generator=generator) + 0.5)
                module.num_batches_tracked.fill_(12)
    return model.eval()


@pytest.fixture(autouse=True)
def swept(tmp_path):
    """Some files weigh 140 MB: none outlives its test."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="module")
def trained() -> dict[str, nn.Module]:
    return {"ir": lived_in(csn("ir")), "ip": lived_in(csn("ip")), "slowfast": lived_in(slowfast())}


@torch.inference_mode()
def logits(model: nn.Module) -> Tensor:
    clip = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    return model.eval()(clip)


def same_backbone(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.backbone.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.backbone.state_dict().items())


def to_vmz(name: str, bottleneck: str) -> str:
    """Our name -> the one in VMZ's pt/ networks (torchvision's VideoResNet)."""
    name = name.removeprefix("backbone.").replace("cls_head.fc_cls.", "fc.")
    name = re.sub(r"^conv1\.conv\.", "stem.0.", name)
    name = re.sub(r"^conv1\.bn\.", "stem.1.", name)
    middle = (
        {"0.conv": "0", "0.bn": "1"}
        if bottleneck == "ir"
        else {"0.conv": "0.0", "0.bn": "0.1", "1.conv": "0.2", "1.bn": "1"}
    )
    for ours, theirs in middle.items():
        if f".conv2.{ours}." in name:
            return name.replace(f".conv2.{ours}.", f".conv2.{theirs}.")
    return re.sub(
        r"\.(conv[13]|downsample)\.conv\.", r".\1.0.", re.sub(r"\.(conv[13]|downsample)\.bn\.", r".\1.1.", name)
    )


def to_pyslowfast(name: str) -> str:
    """Our name of a SlowFast tensor -> PySlowFast's."""
    name = re.sub(r"^backbone\.slow_path\.conv1_lateral\.conv", "s1_fuse.conv_f2s", name)
    name = re.sub(
        r"^backbone\.slow_path\.layer(\d)_lateral\.conv", lambda found: f"s{int(found[1]) + 1}_fuse.conv_f2s", name
    )
    for number, path in enumerate(("slow_path", "fast_path")):
        name = name.replace(f"backbone.{path}.conv1", f"s1.pathway{number}_stem")
        name = re.sub(
            rf"^backbone\.{path}\.layer(\d)\.(\d+)",
            lambda found, number=number: f"s{int(found[1]) + 1}.pathway{number}_res{found[2]}",
            name,
        )
    return name.replace("cls_head.fc_cls", "head.projection")


def promised_name(stem: str, data: bytes, suffix: str = "pth") -> str:
    return f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}.{suffix}"


def saved(content, path: Path | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    if path:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


# Kinds of files


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_loads_to_the_same_logits(trained, tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in trained["slowfast"].state_dict().items()}
    saved({"meta": {"mmaction_version": "0.6.0", "epoch": 256}, "state_dict": state}, tmp_path / "released.pth")
    model = slowfast()
    report = load_weights(model, tmp_path / "released.pth")
    assert torch.equal(logits(model), logits(trained["slowfast"]))
    assert report.kind == "OpenMMLab checkpoint" and report.head == "loaded"
    assert set(report.matched) == set(model.state_dict())
    assert (report.renamed, report.left_over, report.missing, report.zeroed) == ({}, (), (), ())


@pytest.mark.parametrize("bottleneck", ["ir", "ip"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "under model"])
def test_vmz_weights_load_to_the_same_logits(trained, tmp_path, bottleneck, wrapped):
    state = {to_vmz(name, bottleneck): tensor for name, tensor in trained[bottleneck].state_dict().items()}
    saved({"model": state, "epoch": 45} if wrapped else state, tmp_path / "vmz.pth")
    model = csn(bottleneck)
    report = load_weights(model, tmp_path / "vmz.pth")
    assert torch.equal(logits(model), logits(trained[bottleneck]))
    assert report.kind == "VMZ weights" and report.head == "loaded" and report.left_over == ()
    assert report.renamed["stem.0.weight"] == "backbone.conv1.conv.weight"
    assert len(report.renamed) == len(model.state_dict())


def test_a_checkpoint_of_our_own_training_loads(trained, tmp_path):
    saved(trained_weights(trained["ir"], 3, 0.5), tmp_path / "best.pth")
    model = csn()
    assert load_weights(model, tmp_path / "best.pth").kind == "checkpoint of this zoo"
    assert torch.equal(logits(model), logits(trained["ir"]))


def test_safetensors_load(trained, tmp_path):
    save_file(trained["ir"].state_dict(), tmp_path / "weights.safetensors", {"format": "pt"})
    model = csn()
    assert load_weights(model, tmp_path / "weights.safetensors").kind == "OpenMMLab checkpoint"
    assert torch.equal(logits(model), logits(trained["ir"]))


@pytest.mark.parametrize("fc_classes", [None, 359, 6], ids=["no fc", "fc of IG-65M", "fc of as many classes"])
def test_weights_to_start_from_fill_the_backbone_and_leave_the_head_fresh(trained, tmp_path, fc_classes):
    state = {name: tensor for name, tensor in trained["ir"].backbone.state_dict().items()}
    if fc_classes:
        state |= {"fc.weight": torch.ones(fc_classes, 2048), "fc.bias": torch.ones(fc_classes)}
    saved({"state_dict": state}, tmp_path / "ig65m.pth")
    model = csn()
    head = model.cls_head.fc_cls.weight.clone()
    report = load_weights(model, tmp_path / "ig65m.pth")
    assert same_backbone(model, trained["ir"])
    assert torch.equal(model.cls_head.fc_cls.weight, head)
    assert report.kind == "backbone weights" and report.missing == CLASSIFIER
    assert report.left_over == (("fc.weight", "fc.bias") if fc_classes else ())
    assert report.renamed["conv1.conv.weight"] == "backbone.conv1.conv.weight"


def test_another_number_of_classes_keeps_the_fresh_head_and_says_so(trained, tmp_path):
    saved({"state_dict": trained["ir"].state_dict()}, tmp_path / "six.pth")
    model = csn(num_classes=4)
    head = model.cls_head.fc_cls.weight.clone()
    report = load_weights(model, tmp_path / "six.pth")
    assert same_backbone(model, trained["ir"]) and torch.equal(model.cls_head.fc_cls.weight, head)
    assert report.head == "fresh, for 4 classes: the file's has 6"
    assert report.left_over == report.missing == CLASSIFIER


def test_counters_that_a_file_lacks_are_zero(trained, tmp_path):
    state = {n: t for n, t in trained["ir"].state_dict().items() if not n.endswith("num_batches_tracked")}
    saved({"state_dict": state}, tmp_path / "converted.pth")
    model = lived_in(csn())
    report = load_weights(model, tmp_path / "converted.pth")
    assert len(report.zeroed) == 53
    assert {int(n) for name, n in model.state_dict().items() if name.endswith("num_batches_tracked")} == {0}
    assert torch.equal(logits(model), logits(trained["ir"]))


def test_the_report_reads_as_lines(trained, tmp_path):
    state = {to_vmz(name, "ir"): tensor for name, tensor in trained["ir"].state_dict().items()}
    data = saved(state, tmp_path / "vmz.pth")
    lines = load_weights(csn(num_classes=4), tmp_path / "vmz.pth").text().splitlines()
    assert lines == [
        f"{tmp_path / 'vmz.pth'}: VMZ weights, sha256 {hashlib.sha256(data).hexdigest()}",
        "  matched    318 of the network's 320 tensors",
        "  renamed    318: stem.0.weight -> backbone.conv1.conv.weight, stem.1.weight -> backbone.conv1.bn.weight, "
        "stem.1.bias -> backbone.conv1.bn.bias, …",
        "  left over  2: fc.weight, fc.bias",
        "  missing    2: cls_head.fc_cls.weight, cls_head.fc_cls.bias",
        "  head       fresh, for 4 classes: the file's has 6",
    ]


# Files that are refused


def refusal(model: nn.Module, path: Path) -> str:
    """Why the file is refused; the network must be as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(error.value)


@pytest.mark.parametrize("key", ["model_state", "state_dict"])
def test_pyslowfast_is_refused_for_its_laterals(trained, tmp_path, key):
    state = {to_pyslowfast(name): tensor for name, tensor in trained["slowfast"].state_dict().items()}
    for fuse in range(1, 5):
        state |= {f"s{fuse}_fuse.bn.{name}": torch.ones(1) for name in ("weight", "bias", "running_mean")}
    saved({key: state, "epoch": 196}, tmp_path / "SLOWFAST_4x16_R50.pkl")
    why = refusal(slowfast(), tmp_path / "SLOWFAST_4x16_R50.pkl")
    assert "PySlowFast checkpoint" in why and "its lateral connections are convolution, batch norm and ReLU" in why
    assert "12: s1_fuse.bn.weight" in why


def test_another_fusion_kernel_is_refused_with_the_remedy(tmp_path):
    saved({"state_dict": slowfast(fusion_kernel=5).state_dict()}, tmp_path / "256p.pth")
    why = refusal(slowfast(fusion_kernel=7), tmp_path / "256p.pth")
    assert "was trained with fusion_kernel 5, this network has 7" in why
    assert "4 lateral convolutions" in why and "Set the recipe's model.fusion_kernel to 5" in why


def test_a_deeper_network_is_refused_though_all_names_are_there(tmp_path):
    saved({"state_dict": csn(depth=101).state_dict()}, tmp_path / "r101.pth")
    why = refusal(csn(), tmp_path / "r101.pth")
    assert "is of another network: 265 of the backbone's 265 tensors fit; nothing was loaded" in why
    assert "in the file alone: 306: backbone.layer3.6.conv1.conv.weight" in why


def test_another_bottleneck_is_refused_with_the_first_differences(trained, tmp_path):
    saved({"state_dict": trained["ir"].state_dict()}, tmp_path / "ir.pth")
    why = refusal(csn("ip"), tmp_path / "ir.pth")
    assert "not in the file: 80: backbone.layer1.0.conv2.1.conv.weight" in why
    assert (
        "of another shape: 16: backbone.layer1.0.conv2.0.conv.weight: file (64, 1, 3, 3, 3), network (64, 64, 1, 1, 1)"
        in why
    )


def test_one_missing_tensor_of_the_backbone_is_enough(trained, tmp_path):
    state = dict(trained["ir"].state_dict())
    del state["backbone.layer4.2.conv3.bn.running_var"]
    saved({"state_dict": state}, tmp_path / "holey.pth")
    assert "not in the file: 1: backbone.layer4.2.conv3.bn.running_var" in refusal(csn(), tmp_path / "holey.pth")


def test_a_family_does_not_load_into_the_other(trained, tmp_path):
    saved({"state_dict": trained["slowfast"].state_dict()}, tmp_path / "slowfast.pth")
    assert "reads 2048 features" in refusal(csn(), tmp_path / "slowfast.pth")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"features.0.weight": torch.ones(2), "classifier.bias": torch.ones(2)}, "no known kind: 2 tensors, 2: feat"),
        ({"state_dict": {}}, "no known kind: no tensors"),
        ([torch.ones(2)], "a list instead of named tensors; it is not a weights file"),
    ],
    ids=["other names", "empty", "list"],
)
def test_a_file_of_no_known_kind_is_refused(tmp_path, content, why):
    saved(content, tmp_path / "strange.pth")
    assert why in refusal(csn(), tmp_path / "strange.pth")


# Nothing is run


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("scalar", [np.float64(0.74), np.float32(0.5), np.int64(3), np.bool_(True)], ids=repr)
def test_numpys_scalars_in_metadata_are_read(trained, tmp_path, legacy, scalar):
    content = {"meta": {"hook_msgs": {"best_score": scalar}}, "state_dict": trained["ir"].state_dict()}
    saved(content, tmp_path / "mmcv.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "mmcv.pth", weights_only=True)  # so the list of what is allowed does matter
    model = csn()
    assert load_weights(model, tmp_path / "mmcv.pth").head == "loaded"
    assert same_backbone(model, trained["ir"])


def test_numpys_scalars_under_their_name_of_2020_are_read(trained, tmp_path):
    content = {"meta": {"best_score": np.float64(0.74)}, "state_dict": trained["ir"].state_dict()}
    data = saved(content, _use_new_zipfile_serialization=False)
    old = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert old != data
    (tmp_path / "mmcv.pth").write_bytes(old)
    assert load_weights(csn(), tmp_path / "mmcv.pth").head == "loaded"


def test_the_list_of_what_is_allowed_is_put_back(trained, tmp_path):
    before = set(torch.serialization.get_safe_globals())
    saved({"state_dict": trained["ir"].state_dict()}, tmp_path / "a.pth")
    with torch.serialization.safe_globals([np.dtype]):  # somebody's own choice
        load_weights(csn(), tmp_path / "a.pth")
        assert set(torch.serialization.get_safe_globals()) == before | {np.dtype}
    assert set(torch.serialization.get_safe_globals()) == before


class _Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
def test_a_malicious_file_is_refused_and_not_run(trained, tmp_path, container):
    content = {"meta": _Malicious(tmp_path / "broken in"), "state_dict": trained["ir"].state_dict()}
    if container == "pickle":
        (tmp_path / "bad.pth").write_bytes(pickle.dumps(content, protocol=2))
    else:
        saved(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=container == "zip")
    why = refusal(csn(), tmp_path / "bad.pth")
    assert not (tmp_path / "broken in").exists()
    assert "was not loaded" in why
    if container == "zip":
        assert "it asks to run posix.mkdir" in why


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_cut_off_file_is_told_as_damaged(trained, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "pth":
        saved({"state_dict": trained["ir"].state_dict()}, path)
    else:
        save_file(trained["ir"].state_dict(), path)
    path.write_bytes(path.read_bytes()[:1_000_000])
    assert "damaged" in refusal(csn(), path)


# Downloads


class Recording(FolderHandler):
    """Notes what it was asked for."""

    asked: list[tuple[str, str | None]]

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Range")))
        super().do_GET()


class BreaksOff(Recording):
    """Sends half of what is left, and hangs up, until little is left."""

    def send_body(self, body: bytes) -> None:
        if len(body) > 50_000:
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)


@pytest.fixture
def recording():
    return type("Fresh", (Recording,), {"asked": []})


NOISE = hashlib.shake_256(b"weights").digest(200_000)


@pytest.fixture
def site(tmp_path) -> Path:
    """A web folder with a file that bears its hash."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / promised_name("r50", NOISE)).write_bytes(NOISE)
    return tmp_path / "site"


def fetch(url: str, tmp_path: Path) -> Path:
    return fetch_weights(url, tmp_path / "weights", retries=2, backoff_seconds=0.01)


def test_a_file_that_bears_its_hash_is_downloaded_once(site, tmp_path, recording):
    name = promised_name("r50", NOISE)
    with serve(site, recording) as url:
        paths = [fetch(f"{url}/{name}", tmp_path) for _ in range(2)]
    assert paths == [tmp_path / "weights" / name] * 2 and paths[0].read_bytes() == NOISE
    assert recording.asked == [(f"/{name}", None)]
    assert not [path.name for path in (tmp_path / "weights").iterdir() if "partial" in path.name]


def test_a_download_that_breaks_off_goes_on_where_it_ended(site, tmp_path):
    handler = type("Fresh", (BreaksOff,), {"asked": []})
    with serve(site, handler) as url:
        path = fetch(f"{url}/{promised_name('r50', NOISE)}", tmp_path)
    assert path.read_bytes() == NOISE
    assert [asked for _, asked in handler.asked] == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_run_goes_on_where_this_one_gave_up(site, tmp_path, recording):
    class Falls(BreaksOff):
        asked = []  # noqa: RUF012

        def do_GET(self):
            self.send_error(503) if self.headers.get("Range") else super().do_GET()

    name = promised_name("r50", NOISE)
    with serve(site, Falls) as url, pytest.raises(UserError, match=r"could not be fetched: 503 .*run again"):
        fetch(f"{url}/{name}", tmp_path)
    assert not (tmp_path / "weights" / name).exists()
    with serve(site, recording) as url:
        assert fetch(f"{url}/{name}", tmp_path).read_bytes() == NOISE
    assert recording.asked == [(f"/{name}", "bytes=100000-")]


def test_bytes_that_are_not_what_the_name_says_are_refused_and_kept(site, tmp_path):
    (site / "r50-0badc0de.pth").write_bytes(NOISE)
    found = hashlib.sha256(NOISE).hexdigest()[:8]
    with serve(site) as url, pytest.raises(UserError) as error:
        fetch(f"{url}/r50-0badc0de.pth", tmp_path)
    kept = tmp_path / "weights" / f"r50-0badc0de.refused-{found}.pth"
    assert kept.read_bytes() == NOISE and not (tmp_path / "weights" / "r50-0badc0de.pth").exists()
    assert f"has sha256 {found}…, its name promises 0badc0de; it was not loaded and is kept as {kept}" in str(
        error.value
    )
    assert fetch_weights(kept) == kept  # who knows better may use it


def test_a_damaged_file_in_the_cache_is_put_aside_and_fetched_again(site, tmp_path):
    name = promised_name("r50", NOISE)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / name).write_bytes(b"half")
    with serve(site) as url:
        assert fetch(f"{url}/{name}", tmp_path).read_bytes() == NOISE
    (kept,) = (tmp_path / "weights").glob("*.refused-*")
    assert kept.read_bytes() == b"half"


def test_a_damaged_file_of_ones_own_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "r50-0badc0de.pth"
    path.write_bytes(NOISE)
    with pytest.raises(UserError, match="its name promises 0badc0de: it is damaged"):
        fetch_weights(f"file://{path}", tmp_path / "weights")
    assert path.read_bytes() == NOISE


def test_a_file_without_a_hash_is_downloaded_anew_and_does_not_meet_its_namesakes(site, tmp_path):
    (site / "other").mkdir()
    (site / "best.pth").write_bytes(b"one")
    (site / "other" / "best.pth").write_bytes(b"two")
    with serve(site) as url:
        one, two = fetch(f"{url}/best.pth", tmp_path), fetch(f"{url}/other/best.pth", tmp_path)
        assert (one.name, one.read_bytes(), two.name, two.read_bytes()) == ("best.pth", b"one", "best.pth", b"two")
        (site / "best.pth").write_bytes(b"new")
        assert fetch(f"{url}/best.pth", tmp_path) == one and one.read_bytes() == b"new"


def test_an_address_with_a_query_is_asked_with_it_and_shown_without(site, tmp_path, recording):
    name = promised_name("r50", NOISE)
    with serve(site, recording) as url:
        assert fetch(f"{url}/{name}?signature=secret", tmp_path).name == name
        assert recording.asked == [(f"/{name}?signature=secret", None)]
        with pytest.raises(UserError, match="cannot be had: 404 Not Found; check the address") as error:
            fetch(f"{url.replace('//', '//user:secret@')}/none.pth?signature=secret", tmp_path)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "path", ["..%2F..%2Fescaped.pth", "..%5C..%5Cescaped.pth", "a/..%2Fescaped.pth", "%2Ftmp%2Fescaped.pth"]
)
def test_a_name_cannot_lead_out_of_the_cache(tmp_path, path):
    class Any(FolderHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"evil")

    with serve(tmp_path, Any) as url:
        path = fetch(f"{url}/{path}", tmp_path)
    assert path.name == "escaped.pth" and path.parent.parent == tmp_path / "weights"


def test_two_at_once_download_once(site, tmp_path, recording):
    name = promised_name("r50", NOISE)
    with serve(site, recording) as url:
        threads = [threading.Thread(target=fetch, args=(f"{url}/{name}", tmp_path)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert recording.asked == [(f"/{name}", None)]


def test_a_server_that_cannot_prove_who_it_is_is_not_believed(tmp_path):
    certificate = self_signed(tmp_path / "server.pem")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # the client hangs up, as it should
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        with pytest.raises(UserError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(f"https://127.0.0.1:{server.server_address[1]}/r50.pth", tmp_path)
        server.shutdown()
        thread.join()


def self_signed(path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody vouches for, and its key."""
    x509 = pytest.importorskip("cryptography.x509", reason="needs cryptography to make a certificate")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize("source", ["no/such/file.pth", "file:///no/such/file.pth", "ftp://host/file.pth"])
def test_a_source_that_is_no_file_is_named(source):
    with pytest.raises(UserError, match=f"{source} is no file; give a path, or a URL"):
        fetch_weights(source)


# Rows


@pytest.fixture
def in_project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    shutil.copy(PROJECT / "published.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)


def test_a_rows_import_is_a_checkpoint_of_ours(trained, tmp_path, in_project):
    data = saved({"meta": {"epoch": 180}, "state_dict": trained["ir"].state_dict()})
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / promised_name("released", data)).write_bytes(data)
    with serve(tmp_path / "site") as url:
        out, report = import_weights(CSN_ROW, f"{url}/{promised_name('released', data)}")
    assert out == Path("weights") / f"{CSN_ROW}.pth" and report.head == "loaded"
    checkpoint = torch.load(out, weights_only=True)
    assert checkpoint["meta"] == {
        "epoch": 180,
        "model_name": CSN_ROW,
        "row": CSN_ROW,
        "source": promised_name("released", data),
        "source_sha256": hashlib.sha256(data).hexdigest(),
        "kind": "OpenMMLab checkpoint",
        "head": "loaded",
        "model": as_dict(load_params().recipes[CSN_ROW].model),
    }
    model = csn()
    model.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(logits(model), logits(trained["ir"]))
    assert load_weights(csn(), out).kind == "checkpoint of this zoo"


def test_an_import_with_a_fresh_head_is_the_same_each_time(trained, tmp_path, in_project):
    saved({"state_dict": trained["ir"].state_dict()}, tmp_path / "six.pth")
    outs = [tmp_path / name for name in ("a.pth", "b.pth")]
    for out in outs:
        _, report = import_weights(CSN_ROW, tmp_path / "six.pth", num_classes=4, out=out)
    assert report.head == "fresh, for 4 classes: the file's has 6"
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_a_rows_published_checkpoint_is_what_is_imported_without_a_source(tmp_path, in_project, trained):
    data = saved({"state_dict": trained["ir"].state_dict()})
    (tmp_path / promised_name("released", data)).write_bytes(data)
    published = load_params().published[CSN_ROW].ckpt
    text = (tmp_path / "published.yaml").read_text()
    with serve(tmp_path) as url:
        (tmp_path / "published.yaml").write_text(text.replace(published, f"{url}/{promised_name('released', data)}"))
        _, report = import_weights(CSN_ROW)
        assert report.file == Path("weights") / promised_name("released", data)
        (tmp_path / "published.yaml").write_text(text.replace(published, "null"))
        with pytest.raises(UserError, match=f"{CSN_ROW} has no published checkpoint; name a file or URL"):
            import_weights(CSN_ROW)


@pytest.mark.slow
def test_the_command_shows_the_report_and_refuses_in_a_sentence(tmp_path, in_project, trained):
    saved({"state_dict": trained["slowfast"].state_dict()}, tmp_path / "six.pth")
    command = [sys.executable, "-m", "actionzoo.cli", "weights"]
    done = subprocess.run([*command, SLOWFAST, "six.pth", "--out", "mine.pth"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "six.pth: OpenMMLab checkpoint" in done.stdout and done.stdout.endswith("in mine.pth\n")
    done = subprocess.run([*command, CSN_ROW, "six.pth", "--out", "other.pth"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("actionzoo: error: six.pth")
    assert "another network" in done.stderr and not (tmp_path / "other.pth").exists()


# Other projects' files


def test_caffe2s_blobs_are_named_as_such(tmp_path):
    for protocol in (0, 2, 4):
        blobs = {"blobs": {"conv1_w": np.ones((2, 2), np.float32)}}
        (tmp_path / "SLOWFAST_8x8_R50.pkl").write_bytes(pickle.dumps(blobs, protocol=protocol))
        why = refusal(csn(), tmp_path / "SLOWFAST_8x8_R50.pkl")
        assert "is a Caffe2 checkpoint" in why and "PySlowFast" in why and "asks to run" not in why


@pytest.mark.parametrize("key", ["model_state", "state_dict", None], ids=str)
def test_pytorchvideos_hub_files_are_named_as_such(tmp_path, key):
    state = {
        "blocks.0.multipathway_blocks.0.conv.weight": torch.ones(64, 3, 1, 7, 7),
        "blocks.0.multipathway_fusion.conv_fast_to_slow.weight": torch.ones(16, 8, 7, 1, 1),
        "blocks.0.multipathway_fusion.norm.weight": torch.ones(16),
    }
    saved({key: state} if key else state, tmp_path / "SLOWFAST_8x8_R50.pyth")
    why = refusal(slowfast(), tmp_path / "SLOWFAST_8x8_R50.pyth")
    assert "is a PyTorchVideo checkpoint" in why and "1: blocks.0.multipathway_fusion.norm.weight" in why


# Damage


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(trained, tmp_path, value):
    state = {name: tensor.clone() for name, tensor in trained["ir"].state_dict().items()}
    state["backbone.layer3.2.conv1.bn.running_var"][5] = value
    saved({"state_dict": state}, tmp_path / "diverged.pth")
    assert "1: backbone.layer3.2.conv1.bn.running_var" in refusal(csn(), tmp_path / "diverged.pth")


def test_a_weight_too_large_for_the_networks_type_is_refused(trained, tmp_path):
    state = {name: tensor.clone() for name, tensor in trained["ir"].state_dict().items()}
    state["cls_head.fc_cls.bias"] = torch.full((6,), 1e300, dtype=torch.float64)
    saved({"state_dict": state}, tmp_path / "huge.pth")
    assert "1: cls_head.fc_cls.bias" in refusal(csn(), tmp_path / "huge.pth")


@pytest.mark.parametrize("of", [torch.int64, torch.complex64, torch.bool], ids=str)
def test_tensors_that_are_no_weights_are_refused(trained, tmp_path, of):
    state = dict(trained["ir"].state_dict())
    state["backbone.conv1.conv.weight"] = state["backbone.conv1.conv.weight"].to(of)
    saved({"state_dict": state}, tmp_path / "odd.pth")
    assert "backbone.conv1.conv.weight is " in refusal(csn(), tmp_path / "odd.pth")


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_one_changed_bit_is_found_though_the_name_promises_nothing(trained, tmp_path, place):
    data = bytearray(saved({"state_dict": trained["ir"].state_dict()}))
    data[int(place * len(data))] ^= 1
    (tmp_path / "rotten.pth").write_bytes(data)
    why = refusal(csn(), tmp_path / "rotten.pth")
    assert "rotten.pth is damaged" in why and "fetch it again" in why


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"PK\x03\x04" + bytes(100),
        b"<!DOCTYPE html><title>gone</title>",
        bytes(5000),
        (2**40).to_bytes(8, "little") + b"{",
        (20).to_bytes(8, "little") + b'{"a":{"dtype":"F32",',
        (73).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2,-3,-4],"data_offsets":[0,96]}}            ',
        b"[" * 100_000,
        "käse".encode("utf-16"),
    ],
    ids=["empty", "cut", "zip", "page", "zeros", "header", "json", "negative", "deep", "text"],
)
@pytest.mark.parametrize("name", ["any.pth", "any.safetensors", "any.pkl"])
def test_what_is_no_weights_file_is_refused_in_a_sentence(tmp_path, data, name):
    (tmp_path / name).write_bytes(data)
    assert name in refusal(csn(), tmp_path / name)


def test_a_folder_is_no_weights_file(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        load_weights(csn(), tmp_path)


def test_weights_are_read_by_their_bytes_and_not_by_their_ending(trained, tmp_path):
    saved({"state_dict": trained["ir"].state_dict()}, tmp_path / "torch.safetensors")
    save_file(trained["ir"].state_dict(), tmp_path / "tensors.pth")
    for name in ("torch.safetensors", "tensors.pth"):
        assert load_weights(csn(), tmp_path / name).head == "loaded"

"""Weights go into models, report what did not fit, and keep their name (digest) wherever they sit."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import ckptcore
from ckptcore.errors import DamagedCheckpoint, UnknownFormat, WeightsMismatch
from ckptcore.loading import read_header
from ckptcore.weights import ShapeDifference, find_state_dict, load_weights, model_digest


class Net(nn.Module):
    def __init__(self, width=4, outputs=2, extra=False):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, outputs)
        if extra:
            self.more = nn.Linear(2, 2)

    def forward(self, image):
        return self.head(self.features(image).mean((2, 3)))


def make(seed=0, **options):
    torch.manual_seed(seed)
    return Net(**options)


def assert_equal_weights(a, b):
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def layouts(state):
    """The same weights as other programs store them."""
    return {
        "top": state,
        "model_state_dict": {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}}},
        "state_dict": {"state_dict": state, "pytorch-lightning_version": "2.4.0", "epoch": 1},
        "model": {"model": state, "optimizer": {"state": {}, "param_groups": []}},
        "ema": {"ema": state, "step": 7},
    }


@pytest.mark.parametrize("layout", ["top", "model_state_dict", "state_dict", "model", "ema"])
@pytest.mark.parametrize("native", [False, True])
def test_weights_load_from_every_layout(tmp_path, layout, native):
    source, target = make(1), make(2)
    path = tmp_path / "a.pth"
    (ckptcore.save if native else lambda p, s: torch.save(s, p))(path, layouts(source.state_dict())[layout])
    report = load_weights(target, path)
    assert_equal_weights(target, source)
    assert report.fits and report.source_key == ("" if layout == "top" else layout)
    assert set(report.loaded) == set(source.state_dict())
    assert report.lines() == []


def test_weights_load_from_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    source, target = make(1), make(2)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    assert load_weights(target, tmp_path / "a.safetensors").fits
    assert_equal_weights(target, source)


def test_row_4_12_strict_load_of_a_changed_model_lists_all_three_kinds_and_changes_nothing(tmp_path):
    ckptcore.save(tmp_path / "a.pth", {"model_state_dict": make(1, extra=True).state_dict()})
    target = make(2, outputs=5)
    target.added = nn.Linear(1, 1, bias=False)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(WeightsMismatch) as caught:
        load_weights(target, tmp_path / "a.pth")
    assert caught.value.missing == ("added.weight",)
    assert caught.value.unexpected == ("more.weight", "more.bias")
    assert caught.value.other_shape == (
        "head.weight (expected (5, 4), got (2, 4))",
        "head.bias (expected (5,), got (2,))",
    )
    for part in (
        "1 missing: added.weight",
        "2 unexpected: more.weight",
        "2 of another shape: head.weight",
        "strict",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_row_4_12_loose_load_takes_what_fits_and_reports_all_three_kinds(tmp_path):
    source = make(1, extra=True)
    torch.save({"model_state_dict": source.state_dict()}, tmp_path / "a.pth")
    target = make(2, outputs=5)
    target.added = nn.Linear(1, 1, bias=False)
    head = target.head.weight.detach().clone()
    report = load_weights(target, tmp_path / "a.pth", strict=False)
    assert report.missing == ("added.weight",)
    assert report.unexpected == ("more.weight", "more.bias")
    assert report.other_shape == (
        ShapeDifference("head.weight", (5, 4), (2, 4)),
        ShapeDifference("head.bias", (5,), (2,)),
    )
    assert not report.fits and len(report.lines()) == 3
    assert torch.equal(target.features[0].weight, source.features[0].weight)
    assert torch.equal(target.head.weight, head)
    assert set(report.loaded) == {n for n in source.state_dict() if n.startswith("features")}


def test_row_4_13_weights_saved_on_another_device_load_on_the_cpu(tmp_path, monkeypatch):
    """A file that names a GPU, made without one: the place of each storage is rewritten while saving."""
    source, target = make(1), make(2)
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
    torch.save({"model_state_dict": source.state_dict()}, tmp_path / "gpu.pth")
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "gpu.pth")
    assert load_weights(target, tmp_path / "gpu.pth").fits
    assert_equal_weights(target, source)
    assert all(
        value.device.type == "cpu"
        for value in ckptcore.load(tmp_path / "gpu.pth")["model_state_dict"].values()
    )


@pytest.mark.parametrize(
    "prefixes", [("module.",), ("_orig_mod.",), ("_orig_mod.", "module."), ("module.", "_orig_mod.")]
)
def test_prefixes_of_wrappers_are_taken_off_and_reported(tmp_path, prefixes):
    source, target = make(1), make(2)
    wrapped = OrderedDict(("".join(prefixes) + name, value) for name, value in source.state_dict().items())
    torch.save(wrapped, tmp_path / "a.pth")
    report = load_weights(target, tmp_path / "a.pth")
    assert_equal_weights(target, source)
    assert sorted(report.stripped) == sorted(prefixes)


def test_real_wrappers_on_either_side_are_seen_through(tmp_path):
    source, target = make(1), make(2)
    ckptcore.save(tmp_path / "a.pth", {"model_state_dict": nn.DataParallel(source).state_dict()})
    report = load_weights(torch.compile(nn.DataParallel(target)), tmp_path / "a.pth")
    assert report.fits and report.stripped == ("module.",)
    assert_equal_weights(target, source)


def test_a_compiled_submodule_loses_only_its_wrapper(tmp_path):
    source, target = make(1), make(2)
    plain = {name: value.clone() for name, value in source.state_dict().items()}
    source.features = torch.compile(source.features)
    assert any("features._orig_mod." in name for name in source.state_dict())
    ckptcore.save(tmp_path / "a.pth", {"model_state_dict": source.state_dict()})
    report = load_weights(target, tmp_path / "a.pth")
    assert report.stripped == ("_orig_mod.",)
    assert all(torch.equal(plain[name], value) for name, value in target.state_dict().items())


def test_a_model_with_a_part_called_module_keeps_its_names(tmp_path):
    holder, other = nn.Module(), nn.Module()
    holder.module, other.module = make(1), make(2)
    torch.save(holder.state_dict(), tmp_path / "a.pth")
    assert load_weights(other, tmp_path / "a.pth").stripped == ()
    assert_equal_weights(other, holder)


def test_averaged_weights_load_into_the_plain_model_by_their_key(tmp_path):
    source, target = make(1), make(2)
    average = torch.optim.swa_utils.AveragedModel(source)
    average.update_parameters(source)
    ckptcore.save(
        tmp_path / "a.pth", {"model_state_dict": make(3).state_dict(), "ema_state_dict": average.state_dict()}
    )
    report = load_weights(target, tmp_path / "a.pth", key="ema_state_dict")
    assert report.fits and report.stripped == ("n_averaged", "module.")
    assert_equal_weights(target, average.module)


def test_weights_from_before_batch_norms_counted_are_whole(tmp_path):
    source, target = make(1), make(2)
    old = {n: v for n, v in source.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    assert load_weights(target, tmp_path / "old.pth").fits
    assert torch.equal(target.features[1].running_var, source.features[1].running_var)


def test_a_batch_norm_counter_lost_from_a_new_file_is_missing(tmp_path):
    state = make(1).state_dict()
    del state["features.1.num_batches_tracked"]
    ckptcore.save(tmp_path / "a.pth", {"model_state_dict": state})
    with pytest.raises(WeightsMismatch) as caught:
        load_weights(make(2), tmp_path / "a.pth")
    assert caught.value.missing == ("features.1.num_batches_tracked",)


def test_another_dtype_is_converted_and_reported(tmp_path):
    torch.save(make(1).double().state_dict(), tmp_path / "a.pth")
    target = make(2)
    report = load_weights(target, tmp_path / "a.pth")
    assert "head.weight" in report.other_dtype and report.fits
    assert target.head.weight.dtype == torch.float32


def test_a_file_without_weights_is_refused_naming_what_it_has(tmp_path):
    torch.save({"epoch": 3, "history": {"loss": [1.0]}}, tmp_path / "a.pth")
    with pytest.raises(UnknownFormat, match=r"model_state_dict.*it has epoch, history"):
        load_weights(make(), tmp_path / "a.pth")
    with pytest.raises(UnknownFormat, match="'teacher'"):
        find_state_dict({"model_state_dict": {}}, "teacher")


def test_a_config_called_model_is_no_state_dict():
    weights = {"w": torch.zeros(1)}
    assert find_state_dict({"model": {"name": "resnet50"}, "ema": weights}) == ("ema", weights)


def test_damaged_weights_never_reach_the_model(tmp_path):
    path, target = tmp_path / "a.pth", make(2)
    ckptcore.save(path, {"model_state_dict": make(1).state_dict()})
    data = bytearray(path.read_bytes())
    at = data.index(make(1).features[0].weight.detach().numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    before = model_digest(target)
    with pytest.raises(DamagedCheckpoint, match=r"features\.0\.weight"):
        load_weights(target, path, strict=False)
    assert model_digest(target) == before


def test_the_digest_of_a_live_model_is_the_one_in_its_files(tmp_path):
    model = make(1)
    model.tied = model.head
    model.narrow = nn.Parameter(torch.randn(3, 5).to(torch.bfloat16).T)
    model.empty = nn.Parameter(torch.zeros(0, 4))
    ckptcore.save(tmp_path / "a.pth", {"model_state_dict": model.state_dict(), "epoch": 1})
    assert (
        model_digest(model)
        == model_digest(model.state_dict())
        == read_header(tmp_path / "a.pth").model_digest
    )
    assert model_digest(nn.DataParallel(model)) == model_digest(model)
    with torch.no_grad():
        model.head.bias[0] += 1
    assert model_digest(model) != read_header(tmp_path / "a.pth").model_digest


def test_a_model_without_tensors_has_no_digest():
    with pytest.raises(ckptcore.CheckpointError, match="none"):
        model_digest(nn.ReLU())


def test_row_1_7_a_stage_checkpoint_answers_as_the_model_did_when_it_was_saved(tmp_path):
    source = make(1).eval()
    state = {"epoch": 12, "model_state_dict": source.state_dict(), "optimal_threshold": 0.37}
    path = ckptcore.save(
        tmp_path / "checkpoint_epoch12_stage2_f1_0.7800.pth", state, {"epoch_counts": "finished"}
    )
    target = make(2).eval()
    load_weights(target, path)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(target(images), source(images))
    assert ckptcore.load(path)["optimal_threshold"] == 0.37 and ckptcore.load(path).epochs_finished == 12


@pytest.mark.parametrize(
    "told", [("a",), {"": 3}, {"": {"version": "2"}}, {3: {}}, {"": {"assign_to_params_buffers": True}}]
)
def test_whatever_a_strangers_file_says_of_its_layers_their_weights_are_loaded_and_copied(tmp_path, told):
    state = torch.nn.Linear(2, 2).state_dict()
    state._metadata = told
    torch.save({"model_state_dict": state}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    model = torch.nn.Linear(2, 2)
    weight = model.weight
    assert ckptcore.load_weights(model, tmp_path / "a.pt").fits
    assert model.weight is weight and torch.equal(weight, state["weight"])

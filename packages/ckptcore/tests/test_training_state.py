import copy
import io
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from ckptcore.errors import MissingState, UsageError
from ckptcore.training_state import capture, restore, unwrap

KEYS = (
    *(
        "model_state_dict",
        "optimizer_state_dict",
        "scheduler_state_dict",
        "scaler_state_dict",
        "ema_state_dict",
    ),
    *("rng_state", "loader_state"),
)
BATCHES_AN_EPOCH = 4
STEPS = 10


def stored(state: Any) -> Any:
    """The state after a trip through a file that torch opens without trusting it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class Shuffler:
    """A loader that draws its order from a generator and knows how far it has come, even amid an epoch."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(11)
        data = torch.randn(16, 6, generator=torch.Generator().manual_seed(5))
        self.dataset = TensorDataset(data, data.sum(1, keepdim=True).sin())
        self.begun: torch.Tensor | None = None
        self.position = 0

    def batches(self):
        while True:
            if self.begun is None:
                self.begun, self.position = self.generator.get_state(), 0
            again = torch.Generator()
            again.set_state(self.begun)
            loader = DataLoader(self.dataset, batch_size=4, shuffle=True, generator=again)
            order = list(torch.utils.data.BatchSampler(loader.sampler, 4, False))
            self.generator.set_state(again.get_state())
            for index in range(self.position, BATCHES_AN_EPOCH):
                self.position = index + 1
                yield self.dataset[order[index]]
            self.begun = None

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun, self.position = state["begun"], state["position"]


class Run:
    """A whole training run of a small net: everything a checkpoint has to bring back."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        self.device = device
        net = [nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 1)]
        self.model = nn.Sequential(*net).to(device)
        biases = [p for p in self.model.parameters() if p.ndim == 1]
        weights = [p for p in self.model.parameters() if p.ndim > 1]
        groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.01, amsgrad=True)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.05, total_steps=STEPS + 2)
        self.scaler = torch.amp.GradScaler(
            device, enabled=device == "cuda", init_scale=2.0**18, growth_interval=3
        )
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        self.loader = Shuffler()
        self.noise = numpy.random.default_rng(seed)
        self.losses: list[float] = []

    def pieces(self) -> dict[str, Any]:
        names = ("model", "optimizer", "scheduler", "scaler", "ema", "loader")
        given = {name: getattr(self, name) for name in names}
        return {**given, "rng": {"loader": self.loader.generator, "noise": self.noise}}

    def train(self, steps: int) -> None:
        batches = self.loader.batches()
        for _ in range(steps):
            images, targets = (t.to(self.device) for t in next(batches))
            jitter = random.random() + numpy.random.rand() + float(self.noise.random())
            with torch.autocast(self.device, torch.float16, enabled=self.device == "cuda"):
                predicted = self.model(images + 0.01 * jitter)
            loss = nn.functional.mse_loss(predicted.float(), targets)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            self.ema.update_parameters(self.model)
            self.losses.append(loss.item())


def check_resume_at(step: int, device: str) -> None:
    straight = Run(3, device)
    straight.train(step)
    checkpoint = stored(capture(**straight.pieces()))
    straight.train(STEPS - step)
    resumed = Run(99, device)
    resumed.train(2)
    report = restore(checkpoint, **resumed.pieces())
    resumed.losses.clear()
    resumed.train(STEPS - step)
    assert resumed.losses == straight.losses[step:]
    assert same(capture(**resumed.pieces()), capture(**straight.pieces()))
    assert set(report.restored) == set(KEYS)
    assert not report.waived and not report.absent and not report.notes


@pytest.mark.parametrize("step", range(STEPS))
def test_row_4_8_resume_at_every_step_ends_bit_identical(step: int) -> None:
    check_resume_at(step, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: resume on the GPU is not tested")
@pytest.mark.parametrize("step", [0, 3, 7])
def test_row_4_8_resume_on_cuda_ends_bit_identical(step: int) -> None:
    torch.rand(1, device="cuda")
    check_resume_at(step, "cuda")


@pytest.fixture
def run() -> Run:
    made = Run(1)
    made.train(3)
    return made


@pytest.fixture
def checkpoint(run: Run) -> dict[str, Any]:
    return stored(capture(**run.pieces(), epoch=2, history={"train_loss": [1.0]}))


def snapshot_of(run: Run) -> Any:
    return stored(capture(**run.pieces()))


def test_keys_are_those_of_a_checkpoint_and_extras_stay(checkpoint: dict[str, Any]) -> None:
    assert set(checkpoint) == {*KEYS, "epoch", "history"}
    assert checkpoint["epoch"] == 2
    assert checkpoint["ema_state_dict"]["n_averaged"] == 3


def test_what_was_not_given_has_no_key() -> None:
    assert list(capture(model=nn.Linear(1, 1), rng=False)) == ["model_state_dict"]
    assert list(capture()) == ["rng_state"]


def test_an_extra_key_cannot_replace_a_piece() -> None:
    with pytest.raises(UsageError, match="optimizer_state_dict"):
        capture(optimizer_state_dict={})


@pytest.mark.parametrize("name", ["model", "optimizer", "scheduler", "scaler", "ema", "loader"])
def test_an_object_without_state_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: expected an object with state_dict"):
        capture(**{name: 3})
    with pytest.raises(UsageError, match=f"{name}: expected an object with state_dict"):
        restore({f"{name}_state_dict": {"a": {}}, "loader_state": {}}, **{name: 3}, waive=["rng"])


@pytest.mark.parametrize("key", KEYS)
def test_a_piece_the_checkpoint_lacks_is_named_and_nothing_changes(
    key: str, checkpoint: dict[str, Any]
) -> None:
    del checkpoint[key]
    other = Run(2)
    before = snapshot_of(other)
    with pytest.raises(MissingState, match=f"{key}: asked for and not in the checkpoint") as caught:
        restore(checkpoint, **other.pieces())
    assert caught.value.missing == (key,)
    assert same(snapshot_of(other), before)
    report = restore(checkpoint, **other.pieces(), waive=[key])
    assert report.waived == (key,)
    assert set(report.restored) == set(KEYS) - {key}


@pytest.mark.parametrize("name", ["model", "optimizer", "scheduler", "scaler", "ema", "loader"])
def test_a_piece_nobody_asked_for_is_named_and_nothing_changes(name: str, checkpoint: dict[str, Any]) -> None:
    checkpoint["scaler_state_dict"] = {"scale": 2.0}
    other = Run(2)
    pieces = other.pieces()
    pieces["scaler"] = torch.amp.GradScaler("cpu", enabled=True)
    checkpoint["scaler_state_dict"] = pieces["scaler"].state_dict()
    before = snapshot_of(other)
    del pieces[name]
    key = "loader_state" if name == "loader" else f"{name}_state_dict"
    with pytest.raises(
        MissingState, match=f"{key}: the checkpoint holds it and no {name} was given"
    ) as caught:
        restore(checkpoint, **pieces)
    assert caught.value.missing == (key,)
    assert same(snapshot_of(other), before)
    assert restore(checkpoint, **pieces, waive=[name]).waived == (key,)


def test_every_missing_piece_is_named_at_once(run: Run) -> None:
    with pytest.raises(MissingState) as caught:
        restore({"model_state_dict": run.model.state_dict()}, **run.pieces())
    assert set(caught.value.missing) == set(KEYS) - {"model_state_dict"}
    assert "waive=" in str(caught.value)


def test_a_piece_neither_held_nor_asked_for_is_reported_absent(run: Run) -> None:
    saved = {"model_state_dict": run.model.state_dict(), "optimizer_state_dict": None}
    report = restore(saved, model=run.model, rng=False)
    assert report.restored == ("model_state_dict",)
    assert set(report.absent) == set(KEYS) - {"model_state_dict"}


def test_rng_false_leaves_the_generators_alone_and_says_so(checkpoint: dict[str, Any]) -> None:
    other = Run(2)
    before = torch.get_rng_state()
    report = restore(checkpoint, **{**other.pieces(), "rng": False})
    assert torch.equal(torch.get_rng_state(), before)
    assert report.waived == ("rng_state",)


def test_one_generator_can_be_waived(checkpoint: dict[str, Any]) -> None:
    other = Run(2)
    pieces = {**other.pieces(), "rng": {"loader": other.loader.generator}}
    with pytest.raises(MissingState) as caught:
        restore(checkpoint, **pieces)
    assert caught.value.missing == ("rng_state.generators.noise",)
    report = restore(checkpoint, **pieces, waive={"rng.generators.noise"})
    assert report.waived == ("rng_state.generators.noise",)
    assert "rng_state" in report.restored


def test_a_waiver_of_no_piece_is_refused(checkpoint: dict[str, Any], run: Run) -> None:
    with pytest.raises(UsageError, match=r"got 'optimiser'.*Did you mean 'optimizer'"):
        restore(checkpoint, **run.pieces(), waive=["optimiser"])


def test_a_waiver_that_was_not_needed_restores_all_the_same(checkpoint: dict[str, Any]) -> None:
    other = Run(2)
    report = restore(checkpoint, **other.pieces(), waive=["optimizer"])
    assert "optimizer_state_dict" in report.restored and not report.waived


# What does not fit


def refusal(checkpoint: dict[str, Any], other: Run, **changed: Any) -> str:
    """The complaint of a restore that must change nothing."""
    before = snapshot_of(other)
    with pytest.raises(MissingState) as caught:
        restore(checkpoint, **{**other.pieces(), **changed})
    assert same(snapshot_of(other), before)
    return str(caught.value)


def test_a_model_of_another_shape_is_refused_by_tensor(checkpoint: dict[str, Any]) -> None:
    checkpoint["model_state_dict"]["4.weight"] = torch.zeros(3, 16)
    text = refusal(checkpoint, Run(2))
    assert "model_state_dict: 4.weight: expected shape (1, 16) as in the model, got (3, 16)" in text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("4.bias"), "not in the checkpoint, but in the model: 4.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "in the checkpoint, but not in the model: extra"),
        (
            lambda s: s.update({"4.bias": s["4.bias"].double()}),
            "4.bias: expected torch.float32 as in the model",
        ),
    ],
)
def test_names_and_dtypes_of_the_model_count_when_strict(change: Callable[..., Any], text: str) -> None:
    run = Run(1)
    saved = stored(capture(**run.pieces()))
    change(saved["model_state_dict"])
    assert text in refusal(saved, Run(2))
    other = Run(2)
    report = restore(saved, **other.pieces(), strict=False)
    assert any(text in note for note in report.notes)
    assert torch.equal(other.model[0].weight, run.model[0].weight)


def test_a_model_that_is_no_dict_is_refused(checkpoint: dict[str, Any]) -> None:
    checkpoint["model_state_dict"] = [torch.zeros(1)]
    assert "model_state_dict: expected a dict of tensors, got list" in refusal(checkpoint, Run(2))


def test_an_optimizer_with_another_number_of_groups_is_refused(checkpoint: dict[str, Any]) -> None:
    other = Run(2)
    single = torch.optim.AdamW(other.model.parameters(), amsgrad=True)
    assert "expected 1 parameter group(s) as in the optimizer, got 2" in refusal(
        checkpoint, other, optimizer=single
    )


def test_an_optimizer_with_another_number_of_parameters_is_refused(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_state_dict"]["param_groups"][1]["params"].append(9)
    assert "group 1: expected 4 parameter(s) as in the optimizer, got 5" in refusal(checkpoint, Run(2))


def test_an_optimizer_state_of_another_shape_names_the_parameter(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_state_dict"]["state"][1]["exp_avg_sq"] = torch.zeros(2, 16)
    text = refusal(checkpoint, Run(2))
    assert "optimizer_state_dict: 4.weight: exp_avg_sq has shape (2, 16), expected (1, 16)" in text


def test_parameters_in_another_order_are_refused_when_the_optimizer_knows_their_names() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    named = [*first.named_parameters("first"), *second.named_parameters("second")]
    saved = stored(capture(optimizer=torch.optim.AdamW(named), rng=False))
    other = torch.optim.AdamW([*named[2:], *named[:2]])
    with pytest.raises(
        MissingState, match=r"expected the parameter second.weight where the checkpoint has first.weight"
    ):
        restore(saved, optimizer=other, rng=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.RMSprop(p),
        lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.LBFGS(p),
    ],
)
def test_the_state_of_another_kind_of_optimizer_is_refused(make: Callable[..., Any]) -> None:
    parameters = [nn.Parameter(torch.zeros(3))]
    saved = stored(capture(optimizer=make(parameters), rng=False))
    with pytest.raises(MissingState, match="group 0: of another kind of optimizer"):
        restore(saved, optimizer=torch.optim.AdamW(parameters), rng=False)


OPTIMIZERS = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_state_of_every_optimizer_of_torch_fits_itself(kind: str) -> None:
    def made() -> tuple[nn.Module, Any]:
        model = nn.Linear(3, 2)
        options = {"momentum": 0.9} if kind == "SGD" else {}
        return model, getattr(torch.optim, kind)(model.parameters(), lr=0.1, **options)

    def steps(model: nn.Module, optimizer: Any) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(5, 3)).square().sum().backward()
            optimizer.step()

    model, optimizer = made()
    steps(model, optimizer)
    saved = stored(capture(model=model, optimizer=optimizer, rng=False))
    other, fresh = made()
    restore(saved, model=other, optimizer=fresh, rng=False)
    steps(model, optimizer), steps(other, fresh)
    assert same(
        capture(model=other, optimizer=fresh, rng=False), capture(model=model, optimizer=optimizer, rng=False)
    )


def test_the_state_of_another_kind_of_scheduler_is_refused(checkpoint: dict[str, Any]) -> None:
    other = Run(2)
    step = torch.optim.lr_scheduler.StepLR(other.optimizer, 3)
    assert "scheduler_state_dict: of another kind of scheduler" in refusal(checkpoint, other, scheduler=step)


def test_inner_schedulers_are_counted_and_compared() -> None:
    schedulers = torch.optim.lr_scheduler
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    def chain(*parts: Any) -> Any:
        return schedulers.SequentialLR(optimizer, list(parts), milestones=list(range(2, len(parts) + 1)))

    warm, cosine = schedulers.LinearLR(optimizer), schedulers.CosineAnnealingLR(optimizer, 5)
    saved = stored(capture(scheduler=chain(warm, cosine), rng=False))
    restore(
        saved,
        scheduler=chain(schedulers.LinearLR(optimizer), schedulers.CosineAnnealingLR(optimizer, 5)),
        rng=False,
    )
    with pytest.raises(MissingState, match=r"expected 3 inner scheduler\(s\), got 2"):
        restore(saved, scheduler=chain(warm, cosine, schedulers.StepLR(optimizer, 3)), rng=False)
    with pytest.raises(MissingState, match="of another kind of scheduler"):
        restore(saved, scheduler=chain(warm, schedulers.StepLR(optimizer, 3)), rng=False)


def enabled_scaler(**options: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=True, **options)


def test_an_enabled_scaler_goes_on_with_its_scale_and_its_count() -> None:
    scaler = enabled_scaler(init_scale=8.0, growth_interval=7)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 1024.0, "_growth_tracker": 5})
    saved = stored(capture(scaler=scaler, rng=False))
    fresh = enabled_scaler()
    restore(saved, scaler=fresh, rng=False)
    fresh.scale(torch.ones(1))
    expected = {
        "scale": 1024.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 7,
        "_growth_tracker": 5,
    }
    assert fresh.state_dict() == expected


def test_a_scaler_that_would_drop_or_lack_its_state_is_refused(checkpoint: dict[str, Any]) -> None:
    assert "saved by a disabled scaler" in refusal(checkpoint, Run(2), scaler=enabled_scaler())
    checkpoint["scaler_state_dict"] = enabled_scaler().state_dict()
    assert "saved by an enabled scaler, and this one is disabled" in refusal(checkpoint, Run(2))
    del checkpoint["scaler_state_dict"]["_growth_tracker"]
    assert "lacks _growth_tracker" in refusal(checkpoint, Run(2), scaler=enabled_scaler())


def test_the_empty_state_of_a_disabled_scaler_asks_for_no_scaler(checkpoint: dict[str, Any]) -> None:
    other = Run(2)
    assert checkpoint["scaler_state_dict"] == {}
    assert "scaler_state_dict" in restore(checkpoint, **{**other.pieces(), "scaler": None}).absent


def test_an_ema_without_its_counter_is_refused(checkpoint: dict[str, Any]) -> None:
    del checkpoint["ema_state_dict"]["n_averaged"]
    assert "ema_state_dict: not in the checkpoint, but in the model: n_averaged" in refusal(
        checkpoint, Run(2)
    )


class HandMadeEma:
    """Averages kept outside a module, as in several libraries."""

    def __init__(self, width: int) -> None:
        self.state = {
            "decay": 0.9,
            "num_updates": 0,
            "shadow": [torch.zeros(width), torch.zeros(2)],
            "collected": None,
        }

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_an_ema_that_is_no_module_is_compared_and_shares_no_memory() -> None:
    ema = HandMadeEma(3)
    ema.state.update(num_updates=7, shadow=[torch.ones(3), torch.ones(2)])
    saved = capture(ema=ema, rng=False)
    fresh = HandMadeEma(3)
    restore(saved, ema=fresh, rng=False)
    assert same(fresh.state, ema.state)
    fresh.state["shadow"][0].zero_()
    assert ema.state["shadow"][0].tolist() == [1, 1, 1]
    with pytest.raises(MissingState, match=r"shadow\[0\]: expected shape \(4,\), got \(3,\)"):
        restore(saved, ema=HandMadeEma(4), rng=False)
    del saved["ema_state_dict"]["num_updates"]
    with pytest.raises(MissingState, match="lacks num_updates"):
        restore(saved, ema=HandMadeEma(3), rng=False)


# Memory, wrappers, several of a kind, other formats


def test_training_on_leaves_the_checkpoint_as_it_was(checkpoint: dict[str, Any]) -> None:
    before = copy.deepcopy(checkpoint)
    other = Run(2)
    restore(checkpoint, **other.pieces())
    other.train(3)
    assert same(checkpoint, before)


def test_the_optimizer_and_the_scheduler_agree_after_restore(checkpoint: dict[str, Any], run: Run) -> None:
    other = Run(2)
    restore(checkpoint, **other.pieces())
    assert other.scheduler.get_last_lr() == run.scheduler.get_last_lr()
    assert [g["lr"] for g in other.optimizer.param_groups] == [g["lr"] for g in run.optimizer.param_groups]


def test_a_plain_dict_as_loader_is_filled_in_place() -> None:
    saved = stored(capture(loader={"epoch": 3, "order": torch.arange(4)}, rng=False))
    position: dict[str, Any] = {"stale": True}
    restore(saved, loader=position, rng=False)
    assert same(position, {"epoch": 3, "order": torch.arange(4)})


def test_an_empty_position_is_still_a_position() -> None:
    report = restore(stored(capture(loader={}, rng=False)), loader={}, rng=False)
    assert report.restored == ("loader_state",)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
        lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    ],
    ids=["data_parallel", "compiled", "compiled_parallel", "parallel_compiled"],
)
def test_wrappers_leave_no_trace_in_the_names(wrap: Callable[[nn.Module], Any]) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    wrapped = wrap(model)
    saved = stored(capture(model=wrapped, rng=False))
    assert list(saved["model_state_dict"]) == ["0.weight", "0.bias"]
    fresh = nn.Sequential(nn.Linear(2, 2))
    restore(saved, model=wrap(fresh), rng=False)
    assert same(dict(fresh.state_dict()), dict(model.state_dict()))
    assert unwrap(wrapped) is model


def test_ddp_leaves_no_trace_in_the_names(tmp_path: Any) -> None:
    if not torch.distributed.is_available() or torch.distributed.is_initialized():
        pytest.skip("torch.distributed is not free to use")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = nn.Linear(2, 2)
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert list(capture(model=wrapped, rng=False)["model_state_dict"]) == ["weight", "bias"]
        assert unwrap(wrapped) is model
    finally:
        torch.distributed.destroy_process_group()


def pair_of_optimizers() -> dict[str, Any]:
    return {
        "generator": torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=0.1),
        "critic": torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.2),
    }


def test_several_optimizers_keep_their_names() -> None:
    optimizers = pair_of_optimizers()
    saved = stored(capture(optimizer=optimizers, rng=False))
    assert list(saved["optimizer_state_dict"]) == ["generator", "critic"]
    optimizers["generator"].param_groups[0]["lr"] = 9.0
    report = restore(saved, optimizer=dict(reversed(optimizers.items())), rng=False)
    assert set(report.restored) == {"optimizer_state_dict.generator", "optimizer_state_dict.critic"}
    assert optimizers["generator"].param_groups[0]["lr"] == 0.1


def test_one_of_several_that_is_missing_is_named() -> None:
    optimizers = pair_of_optimizers()
    saved = stored(capture(optimizer=optimizers, rng=False))
    with pytest.raises(MissingState, match=r"optimizer_state_dict\.critic: the checkpoint holds it"):
        restore(saved, optimizer={"generator": optimizers["generator"]}, rng=False)
    del saved["optimizer_state_dict"]["critic"]
    with pytest.raises(MissingState, match=r"optimizer_state_dict\.critic: asked for"):
        restore(saved, optimizer=optimizers, rng=False)
    report = restore(saved, optimizer=optimizers, rng=False, waive=["optimizer.critic"])
    assert report.waived == ("optimizer_state_dict.critic",)


def test_several_in_a_list_are_taken_in_order() -> None:
    optimizers = list(pair_of_optimizers().values())
    saved = stored(capture(optimizer=optimizers, rng=False))
    report = restore(saved, optimizer=optimizers, rng=False)
    assert report.restored == ("optimizer_state_dict.0", "optimizer_state_dict.1")
    with pytest.raises(MissingState, match="expected 1 in order, got 2"):
        restore(saved, optimizer=optimizers[0], rng=False)
    with pytest.raises(MissingState, match=r"optimizer_state_dict\.0: group 0: of another kind"):
        restore(saved, optimizer=optimizers[::-1], rng=False)


def test_one_where_several_were_saved_is_refused_and_the_reverse() -> None:
    optimizers = pair_of_optimizers()
    several = stored(capture(optimizer=optimizers, rng=False))
    with pytest.raises(MissingState, match="expected 1 in order, got 2 named generator, critic"):
        restore(several, optimizer=optimizers["critic"], rng=False)
    single = stored(capture(optimizer=optimizers["critic"], rng=False))
    with pytest.raises(MissingState, match="expected 2 named generator, critic, got a single one"):
        restore(single, optimizer=optimizers, rng=False)


def test_one_object_whose_state_is_a_dict_of_dicts_is_a_single_one() -> None:
    class Composite:
        def __init__(self, step: int) -> None:
            self.state = {"warm": {"step": step}, "cosine": {"step": 2 * step}}

        def state_dict(self) -> dict[str, Any]:
            return self.state

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.state = state

    saved = stored(capture(scheduler=Composite(4), optimizer=Composite(5), rng=False))
    scheduler, optimizer = Composite(0), Composite(0)
    restore(saved, scheduler=scheduler, optimizer=optimizer, rng=False)
    assert scheduler.state == {"warm": {"step": 4}, "cosine": {"step": 8}}
    assert optimizer.state["cosine"] == {"step": 10}


def test_lightning_keys_are_understood(run: Run) -> None:
    scaler = enabled_scaler(init_scale=16.0)
    saved = stored(
        {
            "state_dict": run.model.state_dict(),
            "optimizer_states": [run.optimizer.state_dict()],
            "lr_schedulers": [run.scheduler.state_dict()],
            "MixedPrecision": scaler.state_dict(),
            "epoch": 1,
            "loops": {},
        }
    )
    other = Run(2)
    given = {
        "model": other.model,
        "optimizer": other.optimizer,
        "scheduler": other.scheduler,
        "scaler": enabled_scaler(),
    }
    with pytest.raises(MissingState) as caught:
        restore(saved, **given)
    assert caught.value.missing == ("rng_state",)
    report = restore(saved, **given, waive=["rng"])
    assert set(report.restored) == set(KEYS) - {"ema_state_dict", "rng_state", "loader_state"}
    assert same(dict(other.model.state_dict()), dict(run.model.state_dict()))
    assert same(other.optimizer.state_dict(), run.optimizer.state_dict())


def test_empty_lists_of_lightning_hold_nothing() -> None:
    model = nn.Linear(1, 1)
    saved = {"state_dict": model.state_dict(), "optimizer_states": [], "lr_schedulers": []}
    report = restore(saved, model=model, rng=False)
    assert {"optimizer_state_dict", "scheduler_state_dict"} <= set(report.absent)


def test_a_lazy_module_takes_its_shapes_from_the_checkpoint() -> None:
    saved = stored(capture(model=nn.Sequential(nn.Linear(3, 2)), rng=False))
    lazy = nn.Sequential(nn.LazyLinear(2))
    restore(saved, model=lazy, rng=False)
    assert lazy[0].weight.shape == (2, 3)

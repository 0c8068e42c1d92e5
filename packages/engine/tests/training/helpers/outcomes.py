"""What a training came to, and whether two came to the same."""

import torch

import ckptcore

TIMES = {"finished_at"}


def result(pipeline, work=None):
    """Everything that a finished run came to, times aside."""
    work = work or pipeline.works()[-1]
    checkpoint = ckptcore.load(work / "tiny_latest.pth")
    history = {name: values for name, values in checkpoint["history"].items() if name not in TIMES}
    keys = (
        "model_state_dict",
        "optimizer_state_dict",
        "scheduler_state_dict",
        "ema_state_dict",
        "loader_state",
    )
    return (
        {key: checkpoint[key] for key in keys},
        history,
        ckptcore.read_header(work / "tiny_best.pth").model_digest,
    )


def assert_same(one, other):
    assert one[2] == other[2]
    assert_same_end(one, other)


def assert_same_end(one, other, history=True):
    """The same but for the best checkpoint, which may have stayed in another folder.

    Files of the staged layout tell their history by the names of that system.
    """
    assert one[1] == other[1] or not history
    assert flat(one[0]).keys() == flat(other[0]).keys()
    for name, value in flat(one[0]).items():
        twin = flat(other[0])[name]
        assert torch.equal(value, twin) if isinstance(value, torch.Tensor) else value == twin, name


def flat(value, prefix=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}{key}/").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{prefix}{key}/").items()}
    return {prefix: value}

import gc
import os
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptcore.errors import UsageError
from ckptcore.memory import ALIGNMENT, HUGE_PAGE
from ckptcore.snapshot import SnapshotBuffers

DTYPES = [
    *(
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.int64,
        torch.int32,
    ),
    *(torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool),
    *(torch.complex64, torch.complex128),
]
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: pinned staging is not tested"
)


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.rand(shape) < 0.5
    return (torch.rand(shape, dtype=torch.float64) * 100).to(dtype)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (5, 7, 3)], ids=str)
def test_every_dtype_and_shape_is_copied_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    source = random_tensor(shape, dtype)
    (copied,) = SnapshotBuffers().copy([source])
    assert (copied.shape, copied.dtype, copied.is_contiguous()) == (source.shape, dtype, True)
    assert bits(copied) == bits(source)
    assert source.numel() == 0 or copied.data_ptr() != source.data_ptr()


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.t(),
        lambda t: t[::2, 1:],
        lambda t: t[:1].expand(9, -1),
        lambda t: t[:, 3],
        lambda t: t.unfold(0, 3, 1),
        lambda t: t.reshape(1, 2, 3, 8).to(memory_format=torch.channels_last),
    ],
    ids=["transposed", "strided", "expanded", "column", "overlapping", "channels_last"],
)
def test_views_of_any_strides_become_contiguous(view) -> None:
    source = view(torch.randn(6, 8))
    (copied,) = SnapshotBuffers().copy([source])
    assert copied.is_contiguous()
    assert torch.equal(copied, source)


def test_conjugate_and_negative_bits_are_resolved() -> None:
    complex_tensor = torch.randn(4, 3, dtype=torch.complex64)
    sources = [complex_tensor.conj(), complex_tensor.conj().imag, complex_tensor.mH]
    assert sources[0].is_conj() and sources[1].is_neg()
    for copied, source in zip(SnapshotBuffers().copy(sources), sources, strict=True):
        assert not copied.is_conj() and not copied.is_neg()
        assert bits(copied) == bits(source.resolve_conj().resolve_neg())


def test_buffers_are_used_again_and_hold_the_new_values() -> None:
    buffers = SnapshotBuffers()
    sources = [torch.randn(100, 7), torch.arange(5), torch.tensor(1.5)]
    addresses = [t.data_ptr() for t in buffers.copy(sources)]
    size = buffers.nbytes
    for _ in range(3):
        sources = [torch.randn(100, 7), torch.arange(5) * 2, torch.tensor(2.5)]
        copied = buffers.copy(sources)
        assert [t.data_ptr() for t in copied] == addresses
        assert all(torch.equal(a, b) for a, b in zip(copied, sources, strict=True))
    assert buffers.nbytes == size


def test_only_a_changed_position_gets_another_buffer() -> None:
    buffers = SnapshotBuffers()
    first = buffers.copy([torch.zeros(10), torch.zeros(20), torch.zeros(30)])
    before = [t.data_ptr() for t in first]
    changed = buffers.copy([torch.ones(10), torch.ones(21), torch.ones(30)])
    assert [t.data_ptr() == p for t, p in zip(changed, before, strict=True)] == [True, False, True]
    retyped = buffers.copy([torch.ones(10), torch.ones(21), torch.ones(30, dtype=torch.int32)])
    assert retyped[2].dtype is torch.int32 and retyped[0].data_ptr() == before[0]


def test_the_list_may_shrink_and_grow() -> None:
    buffers = SnapshotBuffers()
    for count in (3, 1, 0, 5):
        sources = [torch.full((4,), float(i)) for i in range(count)]
        assert [t.tolist() for t in buffers.copy(sources)] == [t.tolist() for t in sources]
    buffers.copy([])
    assert buffers.nbytes == 0


def test_memory_of_a_larger_past_state_is_given_back() -> None:
    buffers = SnapshotBuffers()
    large = 12 * HUGE_PAGE
    buffers.copy([torch.zeros(8), torch.zeros(large, dtype=torch.uint8)])
    assert buffers.nbytes > large
    (kept,) = buffers.copy([torch.ones(8)])
    assert buffers.nbytes < 2 * HUGE_PAGE
    assert torch.equal(kept, torch.ones(8))


def test_every_tensor_is_aligned_and_owns_just_its_bytes() -> None:
    sources = [torch.randn(n) for n in (1, 3, 17, 1000)]
    for copied in SnapshotBuffers().copy(sources):
        assert copied.data_ptr() % ALIGNMENT == 0
        assert copied.untyped_storage().nbytes() == copied.nbytes
        assert copied.storage_offset() == 0


def test_returned_tensors_outlive_the_buffers() -> None:
    sources = [torch.randn(1000), torch.randn(HUGE_PAGE)]
    copied = SnapshotBuffers().copy(sources)
    gc.collect()
    assert all(torch.equal(a, b) for a, b in zip(copied, sources, strict=True))


def test_snapshot_does_not_follow_its_source() -> None:
    source = torch.zeros(3)
    (copied,) = SnapshotBuffers().copy([source])
    source.fill_(1)
    assert copied.tolist() == [0, 0, 0]


def test_parameters_need_no_gradient_and_inference_mode_leaves_usable_buffers() -> None:
    buffers = SnapshotBuffers()
    parameter = torch.nn.Parameter(torch.randn(4))
    with torch.inference_mode():
        (copied,) = buffers.copy([parameter * 1])
    assert not copied.is_inference()
    (copied,) = buffers.copy([parameter])
    assert not copied.requires_grad
    assert torch.equal(copied, parameter.detach())


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(2).to_sparse(), torch.empty(2, device="meta")],
    ids=["sparse", "meta"],
)
def test_a_tensor_without_plain_data_is_refused_by_position(tensor: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="position 1"):
        SnapshotBuffers().copy([torch.zeros(1), tensor])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux leaves the buffers out of a fork")
def test_a_forked_child_shares_no_buffer_with_its_parent() -> None:
    buffers = SnapshotBuffers()
    (copied,) = buffers.copy([torch.ones(1000)])
    child = os.fork()
    if child == 0:
        os._exit(0 if not copied.any() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert copied.all()


shapes = st.lists(st.integers(0, 6), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=6), min_size=1, max_size=5))
def test_any_sequence_of_states_is_copied_exactly(states) -> None:
    buffers = SnapshotBuffers()
    for state in states:
        sources = [random_tensor(shape, dtype) for shape, dtype in state]
        copied = buffers.copy(sources)
        assert [(t.shape, t.dtype, bits(t)) for t in copied] == [(t.shape, t.dtype, bits(t)) for t in sources]
        spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in copied if t.nbytes)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@needs_cuda
def test_cuda_tensors_arrive_complete_in_pinned_buffers() -> None:
    buffers = SnapshotBuffers()
    for scale in (1.0, 2.0):
        sources = [
            *(torch.randn(2000, 2000, device="cuda") * scale, torch.randn(64, 32, device="cuda").t()),
            *(
                torch.randn(5, dtype=torch.complex64, device="cuda").conj(),
                torch.ones(3),
                torch.tensor(1.0, device="cuda"),
            ),
        ]
        copied = buffers.copy(sources)
        expected = [t.cpu().resolve_conj() for t in sources]
        for source in sources:
            source.zero_() if not source.is_conj() else None
        assert all(t.device.type == "cpu" and t.is_contiguous() for t in copied)
        assert all(torch.equal(a, b) for a, b in zip(copied, expected, strict=True))
    assert copied[0].is_pinned() and not copied[3].is_pinned()
    del copied, buffers
    gc.collect()
    torch.cuda.synchronize()


@needs_cuda
def test_the_copy_waits_for_work_the_loop_has_queued() -> None:
    buffers = SnapshotBuffers()
    value = torch.zeros(4_000_000, device="cuda")
    for _ in range(200):
        value += 1
    (copied,) = buffers.copy([value])
    assert (copied == 200).all()

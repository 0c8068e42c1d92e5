import io
import struct
from collections import OrderedDict
from typing import Any

import pytest
import torch
from forgery import call, global_, number, state, storage, tensor, text, tuple_
from hypothesis import given, settings
from hypothesis import strategies as st
from states import difference

from ckptcore.pickled import MAX_PICKLE, PickleProblem, TensorSpec, emit
from ckptcore.plain import MAX_DEPTH, MAX_TUPLE_KEYS, TensorSlot
from ckptcore.unpickled import MAX_CONTAINERS, parse

KEYS = (
    st.text(max_size=4) | st.integers(-9, 9) | st.none() | st.tuples(st.text(max_size=2), st.integers(0, 3))
)
TREES = st.dictionaries(
    st.text(st.characters(), max_size=6),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**2000), 2**2000)
        | st.floats()
        | st.text(st.characters(), max_size=9)
        | st.binary(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=5).map(tuple)
            | st.dictionaries(KEYS, inner, max_size=4)
        ),
    ),
)
HOOKS = b")" + b"R"


@given(TREES)
def test_what_is_emitted_is_parsed_back_and_torch_reads_the_same(tree: dict[str, Any]) -> None:
    data = emit(tree, [])
    assert difference(parse(data)[0], tree) is None
    from torch._weights_only_unpickler import load

    assert difference(load(io.BytesIO(data)), tree) is None


@given(TREES, st.data())
@settings(max_examples=200)
def test_any_change_is_refused_in_one_way_or_read_as_torch_reads_it(
    tree: dict[str, Any], data: st.DataObject
) -> None:
    from torch._weights_only_unpickler import load

    pickle = bytearray(emit(tree, []))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(pickle) - 1))
        pickle[at] = data.draw(st.integers(0, 255))
    try:
        ours, _ = parse(bytes(pickle))
    except PickleProblem:
        return
    theirs = load(io.BytesIO(pickle))
    assert difference(theirs, ours) is None or "dtype" in repr(theirs) or "Size" in repr(theirs)


def test_tensors_are_described_by_dtype_and_shape() -> None:
    specs = [TensorSpec("float32", (2, 3)), TensorSpec("uint16", ()), TensorSpec("float8_e5m2", (0, 4))]
    tree = {"a": TensorSlot(0), "b": [TensorSlot(1), TensorSlot(2), TensorSlot(0)]}
    assert parse(emit(tree, specs)) == (tree, dict(enumerate(specs)))


@pytest.mark.parametrize(
    ("pickle", "problem"),
    [
        (b"", "ends too early"),
        (b"\x80\x04}.", "protocol 2"),
        (b"\x80\x02].", "no dict"),
        (b"\x80\x02}(K\x01K\x02u.", "no dict with text keys"),
        (b"\x80\x02}}.", "one value"),
        (b"\x80\x02}.}", "one value"),
        (b"\x80\x02(}.", "one value"),
        (b"\x80\x02u.", "mark is missing"),
        (b"\x80\x02R.", "value is missing"),
        (b"\x80\x02\x87.", "values are missing"),
        (b"\x80\x02}(" + text("a") + b"u.", "no empty dict"),
        (b"\x80\x02}(" + text("a") + b"Nu(" + text("b") + b"Nu.", "no empty dict"),
        (b"\x80\x02}(" + text("a") + b"N" + text("a") + b"Nu.", "twice"),
        (b"\x80\x02}(K\x01N\x88Nu.", "twice"),
        (b"\x80\x02X\xff\xff\xff\xffabc.", "ends too early"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "Unicode"),
        (b"\x80\x02h\x05.", "not there"),
        (b"\x80\x02}q\x00.", "memo entry"),
        (state(a=text("x") + b"q\x07"), "memo entry"),
        (b"\x80\x02cos\nsystem\n(" + text("true") + b"tR.", "os.system"),
        (b"\x80\x02c" + b"x" * 400, "without an end"),
        (state(a=global_("torch.FloatStorage")), "as a value"),
        (state(a=global_("builtins.complex")), "as a value"),
        (state(a=storage("0", 1)), "outside a tensor"),
        (state(a=tuple_(storage("0", 1))), "outside a tensor"),
        (state(a=call("builtins.set", text("x"))), "call of builtins.set"),
        (state(a=call("builtins.set", b"](]e")), "call of builtins.set"),
        (state(a=call("_codecs.encode", text("x"), text("zip"))), "call of _codecs.encode"),
        (state(a=call("torch.Size", tuple_(text("x")))), "call of torch.Size"),
        (state(a=call("torch.Size", tuple_(number(1 << 63)))), "call of torch.Size"),
        (state(a=call("torch.device", text("38"))), "call of torch.device"),
        (state(a=call("torch.device", text("cuda:128"))), "call of torch.device"),
        (state(a=call("torch.device", text("nowhere"))), "call of torch.device"),
        (state(a=global_("torch.complex32")), "torch.complex32"),
        (state(a=call("torch.FloatStorage", number(1 << 40))), "call of torch.FloatStorage"),
        (
            state(a=call("torch.storage.UntypedStorage", number(1 << 40))),
            "call of torch.storage.UntypedStorage",
        ),
        (state(a=call("builtins.bytearray", number(1 << 40))), "builtins.bytearray"),
        (state(a=b"]}(" + text("items") + b"Nub"), "attributes"),
        (state(a=call("collections.OrderedDict") + b"}(" + text("items") + b"Nub"), "attributes"),
        (
            state(
                a=call("collections.OrderedDict")
                + b"}("
                + text("_metadata")
                + tensor(storage("0", 1), (1,), (1,))
                + b"ub"
            ),
            "among the attributes",
        ),
        (state(a=b"}(" + number(1 << 61) + b"Nu"), "key"),
        (state(a=b"}(]Nu"), "key"),
        (state(a=b"}(" + global_("torch.float16") + b"Nu"), "key"),
        (state(a=b"}(" + tuple_(global_("torch.float16")) + b"Nu"), "key"),
        (state(a=tensor(storage("0", 4), (5,), (1,))), "does not fill"),
        (state(a=tensor(storage("0", 4), (2, 2), (1, 2))), "does not fill"),
        (state(a=tensor(storage("0", 4), (4,), (1,), offset=1)), "none of ours"),
        (state(a=tensor(storage("0", 4), (-4,), (1,))), "impossible shape"),
        (state(a=tensor(storage("0", 0), (0, 1 << 47, 1 << 47), (1, 1, 1))), "impossible shape"),
        (state(a=tensor(storage("0", 1), (1,) * 65, (1,) * 65)), "impossible shape"),
        (state(a=tensor(storage("00", 1), (1,), (1,))), "no index"),
        (state(a=tensor(storage("../0", 1), (1,), (1,))), "no index"),
        (state(a=tensor(storage("0", 1, location="cuda"), (1,), (1,))), "no storage"),
        (state(a=tensor(storage("0", 1), (1,), (1,)), b=tensor(storage("0", 2), (2,), (1,))), "two ways"),
        (
            state(
                a=tensor(storage("0", 1), (1,), (1,)),
                b=tensor(storage("0", 1, "torch.IntStorage"), (1,), (1,)),
            ),
            "two ways",
        ),
    ],
)
def test_what_the_writer_never_writes_is_refused(pickle: bytes, problem: str) -> None:
    with pytest.raises(PickleProblem, match=problem):
        parse(pickle)


def test_a_refused_global_is_named() -> None:
    with pytest.raises(PickleProblem) as caught:
        parse(b"\x80\x02csubprocess\nPopen\n.")
    assert caught.value.names == ("subprocess.Popen",)


@pytest.mark.parametrize(
    "nest",
    [
        lambda depth: b"](" * depth + b"N" + b"e" * depth,
        lambda depth: b"N" + b"\x85" * depth,
        lambda depth: b"(" * depth + b"N" + b"t" * depth,
        lambda depth: (b"}(" + text("a")) * depth + b"N" + b"u" * depth,
        lambda depth: b"}(" + b"N" + b"\x85" * depth + b"Nu",
        lambda depth: (
            call("collections.OrderedDict") + b"}(" + text("_metadata") + b"](" * depth + b"e" * depth + b"ub"
        ),
    ],
    ids=["lists", "short tuples", "long tuples", "dicts", "keys", "attributes"],
)
def test_nesting_beyond_the_limit_is_refused_however_it_is_spelled(nest: Any) -> None:
    parse(state(a=nest(MAX_DEPTH - 4)))
    for depth in (MAX_DEPTH + 1, 2 * MAX_DEPTH, 900, 5000, 100_000):
        with pytest.raises(PickleProblem):
            parse(state(a=nest(depth)))


def test_more_containers_than_memory_should_hold_are_refused() -> None:
    with pytest.raises(PickleProblem, match="containers"):
        parse(b"\x80\x02" + b"]" * (MAX_CONTAINERS + 1))


def test_more_tuple_keys_than_writers_use_are_refused() -> None:
    keys = b"".join(tuple_(number(i)) + b"N" for i in range(MAX_TUPLE_KEYS + 1))
    with pytest.raises(PickleProblem, match="key"):
        parse(state(a=b"}(" + keys + b"u"))


def test_a_pickle_too_large_is_not_even_begun() -> None:
    with pytest.raises(PickleProblem, match="at most"):
        parse(bytes(MAX_PICKLE + 1))


def test_attributes_of_a_state_dict_come_back() -> None:
    weights: OrderedDict[str, int] = OrderedDict(a=1)
    weights._metadata = OrderedDict({"": {"version": 2}})  # type: ignore[attr-defined]
    found, _ = parse(emit({"m": weights}, []))
    assert found["m"]._metadata == {"": {"version": 2}}


def test_the_memo_goes_on_past_256_entries() -> None:
    tree = {f"key {i}": [f"key {i}", "again"] for i in range(70_000)}
    data = emit(tree, [])
    assert parse(data)[0] == tree
    assert struct.pack("<I", 65_536) in data


def test_the_longest_integer_is_one_that_torch_reads_too() -> None:
    from torch._weights_only_unpickler import load

    value = (1 << 2032) - 1
    for number_ in (value, -value):
        assert (
            load(io.BytesIO(emit({"n": number_}, []))) == {"n": number_} == parse(emit({"n": number_}, []))[0]
        )


def test_torch_itself_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", None)
    assert parse(state(a=b"N"))[0] == {"a": None}

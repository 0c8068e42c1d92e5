"""What libraries say about tags while they read reaches nobody, and afterwards they speak again."""

import logging
import threading
import warnings

from radfuse.serving.images.errors import UnreadableImage, guarded
from radfuse.serving.images.silence import silenced


def test_nothing_is_heard_inside_and_everything_after(caplog):
    logger = logging.getLogger("pydicom.somewhere")
    with silenced(), silenced():
        logger.error("PatientName is Musterfrau")
        warnings.warn("PatientName is Musterfrau", stacklevel=1)
    assert not caplog.records
    logger.error("again")
    assert [record.message for record in caplog.records] == ["again"]


def test_threads_that_overlap_leave_the_levels_as_they_were():
    logger = logging.getLogger("pydicom")
    before, filters = logger.level, list(warnings.filters)
    first_in, second_in = threading.Event(), threading.Event()

    def first():
        with silenced():
            first_in.set()
            second_in.wait(10)

    def second():
        first_in.wait(10)
        with silenced():
            second_in.set()
            threads[0].join(10)
            assert logger.level > logging.CRITICAL

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert logger.level == before
    assert warnings.filters == filters


def test_any_error_becomes_a_reason_without_its_message(tmp_path):
    for error in (
        ValueError("Musterfrau"),
        RecursionError("Musterfrau"),
        MemoryError(),
        OSError("Musterfrau"),
    ):
        try:
            with guarded(tmp_path / "a.dcm", "the header cannot be parsed"):
                raise error
        except UnreadableImage as caught:
            assert "Musterfrau" not in str(caught)
            assert caught.__cause__ is error

"""The log that programs read: one JSON object a line, whole at any moment."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from pathlib import Path

import pytest

from stinfer.errors import OutputExistsError, OutputWriteError, SettingError
from stinfer.record import Notices
from stinfer.run_log import log_event, logged_slide, logging_to, stage


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_events_notices_and_stages_come_as_lines_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with logging_to(path), logged_slide("a/µ.svs"):
        Notices().add("pale")
        with stage("read") as counts:
            counts["n_regions"] = 3
        found = lines_of(path)  # while it is open
        log_event("more", values=[1, "x"])
    assert [(line["event"], line["level"], line["slide"]) for line in found] == [
        ("slide_started", "info", "a/µ.svs"),
        ("notice", "warning", "a/µ.svs"),
        ("stage", "info", "a/µ.svs"),
    ]
    assert found[1]["message"] == "pale"
    assert (found[2]["stage"], found[2]["n_regions"]) == ("read", 3)
    assert found[2]["seconds"] >= 0
    for line in found:
        moment = datetime.fromisoformat(line["time"].replace("Z", "+00:00"))
        assert abs((datetime.now(timezone.utc) - moment).total_seconds()) < 60
    assert lines_of(path)[-1]["values"] == [1, "x"]


def test_a_second_run_is_added_behind_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        with logging_to(tmp_path / "log"):
            log_event("here")
    assert [line["event"] for line in lines_of(tmp_path / "log")] == ["here", "here"]


@pytest.mark.parametrize(
    ("error", "event", "more"),
    [
        (SettingError("k is 0", "give more"), "slide_failed", {"cause": "k is 0", "fix": "give more"}),
        (RuntimeError("oh\nno"), "slide_failed", {"cause": "a bug: RuntimeError: oh"}),
        (KeyboardInterrupt(), "slide_interrupted", {}),
        (SystemExit(143), "slide_interrupted", {}),
    ],
    ids=repr,
)
def test_what_goes_wrong_is_the_last_line(
    tmp_path: Path, error: BaseException, event: str, more: dict
) -> None:
    with pytest.raises(type(error)), logging_to(tmp_path / "log"), logged_slide("a.svs"):
        raise error
    last = lines_of(tmp_path / "log")[-1]
    assert last.pop("time")
    expected = {"level": "error", "event": event, "slide": "a.svs", "kind": type(error).__name__}
    assert last == expected | more


def test_without_a_log_nothing_is_shown_or_changed(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("stinfer")
    before = (logger.level, list(logger.handlers))
    with logging_to(None), logged_slide("a.svs"), stage("read"):
        log_event("here")
    assert caplog.messages == []
    assert (logger.level, logger.handlers) == before


def test_the_logger_is_left_as_it_was_found(tmp_path: Path) -> None:
    logger = logging.getLogger("stinfer")
    before = (logger.level, list(logger.handlers))
    with logging_to(tmp_path / "log"):
        assert (logger.level, list(logger.handlers)) != before
    assert (logger.level, logger.handlers) == before


def test_a_file_that_is_no_log_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "slide.svs").write_bytes(b"II*\0")
    with pytest.raises(OutputExistsError, match="and is no log"), logging_to(tmp_path / "slide.svs"):
        pass
    assert (tmp_path / "slide.svs").read_bytes() == b"II*\0"
    with pytest.raises(OutputWriteError), logging_to(tmp_path / "none" / "log"):
        pass


def test_a_disk_that_is_full_ends_the_log_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with caplog.at_level(logging.WARNING, "stinfer"), logging_to("/dev/full"):
        log_event("here")
        log_event("and here")
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["log /dev/full cannot be written (No space left on device): it ends here"]

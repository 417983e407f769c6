"""What an agent warns about reaches the report once, and Ray's log."""

from __future__ import annotations

import logging

import pytest

from hotstart.launcher.host_warnings import HostWarnings

pytestmark = pytest.mark.unit


def test_host_warnings_are_taken_once_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    warnings = HostWarnings()
    logger = logging.Logger("hotstart.made_up")
    logger.addHandler(warnings)
    logger.info("not this")
    logger.warning("the %s is lost", "coordinator")
    assert warnings.take() == ["the coordinator is lost"]
    assert warnings.take() == []
    assert capsys.readouterr().err == "the coordinator is lost\n"


def test_host_warnings_beyond_ten_are_only_written(capsys: pytest.CaptureFixture[str]) -> None:
    warnings = HostWarnings()
    logger = logging.Logger("hotstart.made_up")
    logger.addHandler(warnings)
    for number in range(12):
        logger.warning("%d", number)
    assert warnings.take() == [str(number) for number in range(10)]
    assert capsys.readouterr().err.splitlines() == [str(number) for number in range(12)]

"""When a failed answer of the bucket asks to be asked again."""

from __future__ import annotations

import pytest

from hotstart.cache.errors import TransientError
from hotstart.cache.gcs_answers import HttpFailure, retry_after_s, translate_status

pytestmark = pytest.mark.unit

SENT = "Fri, 27 Nov 2026 16:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 120 "}, 120.0),
        ({"Retry-After": "0"}, 0.0),
        # By the server's clock, whatever ours says.
        ({"Retry-After": "Fri, 27 Nov 2026 16:00:30 GMT", "Date": SENT}, 30.0),
        ({"Retry-After": "Fri, 27 Nov 2026 15:59:00 GMT", "Date": SENT}, 0.0),
        ({"Retry-After": "Fri, 27 Nov 2026 16:00:30 GMT"}, None),
        ({"Retry-After": "soon", "Date": SENT}, None),
        ({"Retry-After": "-5", "Date": SENT}, None),
        ({"Retry-After": "\u00b2", "Date": SENT}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(
    headers: dict[str, str], expected_s: float | None
) -> None:
    assert retry_after_s(headers) == expected_s


def test_translated_failure_keeps_what_the_server_asks_for_and_says_so() -> None:
    error = translate_status(HttpFailure(429, "slow down", 12.0), "read gs://b/o")
    assert type(error) is TransientError
    assert error.retry_after_s == 12.0
    assert str(error) == (
        "cannot read gs://b/o: HTTP 429: slow down (it asks to be left alone for 12 s)"
    )

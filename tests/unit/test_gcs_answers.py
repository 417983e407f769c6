"""When a failed answer of the bucket asks to be asked again."""

from __future__ import annotations

import google.auth.exceptions
import pytest
from gcsfs.retry import HttpError

from hotstart.cache.errors import AccessDenied, StoreError, TransientError
from hotstart.cache.gcs_answers import HttpFailure, retry_after_s, translate_status
from hotstart.cache.gcs_client import _translate

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


def _chain(*errors: Exception) -> Exception:
    for error, cause in zip(errors, errors[1:], strict=False):
        error.__cause__ = cause
    return errors[0]


def _bad_token() -> HttpError:
    return HttpError({"code": 401, "message": "Invalid Credentials"})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (google.auth.exceptions.TransportError("no route"), TransientError),
        (
            _chain(
                _bad_token(),
                google.auth.exceptions.RefreshError("metadata"),
                google.auth.exceptions.TransportError("no route"),
            ),
            TransientError,
        ),
        (
            _chain(_bad_token(), google.auth.exceptions.RefreshError("busy", retryable=True)),
            TransientError,
        ),
        (_chain(_bad_token(), google.auth.exceptions.RefreshError("revoked")), AccessDenied),
        (google.auth.exceptions.DefaultCredentialsError("none"), AccessDenied),
    ],
    ids=["transport", "wrapped_transport", "wrapped_retryable", "revoked", "none"],
)
def test_trouble_with_a_token_is_tried_again_where_it_was_the_network(
    error: Exception, expected: type[StoreError]
) -> None:
    assert type(_translate(error, "read gs://b/o")) is expected

"""Times in COPY's binary format are those PostgreSQL counts: microseconds since the year 2000."""

import struct
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given, settings
from hypothesis import strategies as st

from outbox.log.copy_format import timestamp

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))


@given(moments, st.integers(-14 * 60, 14 * 60))
@settings(derandomize=True)
def test_a_time_is_counted_from_the_year_2000_in_any_zone(naive, minutes):
    at = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    length, value = struct.unpack("!iq", timestamp(at))
    assert length == 8
    assert EPOCH + timedelta(microseconds=value) == at

"""Times as people write them, turned into exact nanoseconds."""

import re
from datetime import date
from decimal import Decimal, InvalidOperation

from traces.trace import NS_PER_S

UNIT_NS = {"s": NS_PER_S, "ms": 1_000_000, "us": 1_000, "ns": 1}
LATEST_NS = 2**62  # year 2116 as epoch; leaves room for differences in int64

_EPOCH_DAY = date(1970, 1, 1).toordinal()
_PLAIN_NUMBER = re.compile(r"-?(\d+)(?:\.(\d*))?\Z", re.ASCII)
_DATE_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,12}))?\s*(Z|z|UTC|[+-]\d\d:?\d\d)?\Z", re.ASCII
)
_SECONDS = re.compile(r"(\d\d)(?:\.(\d{1,12}))?\Z", re.ASCII)
_EPOCH_UNITS = (("s", 1e8, 1e10), ("ms", 1e11, 1e13), ("us", 1e14, 1e16), ("ns", 1e17, 4.6e18))


def number_ns(text: str, unit_ns: int) -> int:
    """Return a decimal number of units as whole nanoseconds, exactly rounded; raises ValueError where it is none."""
    match = _PLAIN_NUMBER.match(text)
    if match is None or len(text) > 40:
        return _decimal_ns(text, unit_ns)
    whole, fraction = match[1], match[2] or ""
    value = int(whole) * unit_ns
    if fraction:
        scale = 10 ** len(fraction)
        value += (int(fraction) * unit_ns * 2 + scale) // (2 * scale)
    return _bounded(-value if text[0] == "-" else value)


def date_time_ns(text: str, minutes: dict[str, int]) -> int:
    """Return a date and time as ns since 1970, naive ones as UTC; `minutes` caches what was seen; raises ValueError."""
    known = minutes.get(text[:17])
    if known is not None and (rest := _SECONDS.match(text, 17)):
        return known + _seconds_ns(rest[1], rest[2] or "")
    match = _DATE_TIME.match(text)
    if match is None:
        raise ValueError
    year, month, day, hour, minute = (int(match[group]) for group in range(1, 6))
    if not (1970 <= year < 2116 and hour < 24 and minute < 60):
        raise ValueError
    days = date(year, month, day).toordinal() - _EPOCH_DAY
    minute_ns = ((days * 24 + hour) * 60 + minute) * 60 * NS_PER_S
    if not match[8]:
        minutes[text[:17]] = minute_ns
    return minute_ns + _seconds_ns(match[6], match[7] or "") - _offset_ns(match[8])


def has_zone(text: str) -> bool:
    """Return whether a date and time names its zone."""
    match = _DATE_TIME.match(text.strip())
    return bool(match and match[8])


def epoch_unit(value: float) -> str | None:
    """Return the unit in which a number could be an epoch time between 1973 and 2116, or None."""
    return next((unit for unit, low, high in _EPOCH_UNITS if low <= value < high), None)


def _seconds_ns(seconds: str, fraction: str) -> int:
    if int(seconds) > 60:
        raise ValueError
    return int(seconds) * NS_PER_S + int(fraction[:9].ljust(9, "0") or 0)


def _offset_ns(zone: str | None) -> int:
    if zone is None or zone in ("Z", "z", "UTC"):
        return 0
    minutes = int(zone[1:3]) * 60 + int(zone[-2:])
    return (-60 if zone[0] == "-" else 60) * minutes * NS_PER_S


def _decimal_ns(text: str, unit_ns: int) -> int:
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError from None
    if not value.is_finite() or value.adjusted() > 20 or "_" in text:
        raise ValueError
    return _bounded(0 if value.adjusted() < -30 else int((value * unit_ns).to_integral_value()))


def _bounded(value_ns: int) -> int:
    if abs(value_ns) > LATEST_NS:
        raise ValueError
    return value_ns

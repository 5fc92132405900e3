"""Reading strace's summary."""

from bench.syscalls import parse_total

SUMMARY = """\
    calls syscall
--------- ----------------
    12000 recvfrom
    16000 writev
--------- ----------------
    28000 total
"""


def test_the_total_is_read_from_the_last_line() -> None:
    assert parse_total(SUMMARY) == 28000


def test_no_summary_is_no_calls() -> None:
    assert parse_total("") == 0

"""Limits read from every source, lanes that open and close, gauges that do not flap: pure, with the time as an argument."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claudecluster.limits import signals
from claudecluster.limits.gauge import Gauge
from claudecluster.limits.lane import Lane, Pace, Ticket
from claudecluster.limits.signals import Signal, Trouble
from claudecluster.limits.summary import Ledger, Standing, summarize
from claudecluster.limits.tracker import TIERS, Tier, Tracker
from claudecluster.limits.windows import Window, from_headers, moment, retry_after
from claudecluster.model.usage import Metered, Usage

NOW = 1_795_165_000.0  # 2026-11-20 08:56:40 UTC

# Every source of requirement R3, as recorded from Claude Code 2.1.197 and 2.1.327 and from the API's documentation.
SAMPLES: dict[str, tuple[Signal | None, Trouble | None, float | None]] = {
    "429 with retry-after": (signals.from_response(429, {"retry-after": "30"}, "rate_limit_error", NOW), Trouble.LIMITED, NOW + 30),
    "429 with a date": (signals.from_response(429, {"retry-after": "Fri, 20 Nov 2026 09:00:00 GMT"}, "", NOW), Trouble.LIMITED, NOW + 200),
    "429 without a word": (signals.from_response(429, {}, "rate_limit_error", NOW), Trouble.LIMITED, None),
    "429 of a drained window": (
        signals.from_response(
            429,
            {"anthropic-ratelimit-unified-status": "rejected", "anthropic-ratelimit-unified-reset": "1795171590", "retry-after": "9"},
            "",
            NOW,
        ),
        Trouble.LIMITED,
        1795171590.0,
    ),
    "529": (signals.from_response(529, {}, "overloaded_error", NOW), Trouble.OVERLOADED, None),
    "503": (signals.from_response(503, {}, "", NOW), Trouble.OVERLOADED, None),
    "500": (signals.from_response(500, {}, "api_error", NOW), Trouble.BROKEN, None),
    "401": (signals.from_response(401, {}, "authentication_error", NOW), Trouble.DENIED, None),
    "403": (signals.from_response(403, {}, "permission_error", NOW), Trouble.DENIED, None),
    "402": (signals.from_response(402, {}, "billing_error", NOW), Trouble.UNPAID, None),
    "400": (signals.from_response(400, {}, "invalid_request_error", NOW), Trouble.INVALID, None),
    "400 of another type": (signals.from_response(400, {}, "billing_error", NOW), Trouble.UNPAID, None),
    "200": (signals.from_response(200, {}, "", NOW), None, None),
    "error event, limit": (signals.from_event({"type": "error", "error": {"type": "rate_limit_error"}}, NOW), Trouble.LIMITED, None),
    "error event, overload": (signals.from_event({"type": "error", "error": {"type": "overloaded_error"}}, NOW), Trouble.OVERLOADED, None),
    "error event, nameless": (signals.from_event({"type": "error"}, NOW), Trouble.BROKEN, None),
    "any other event": (signals.from_event({"type": "ping"}, NOW), None, None),
    "rate_limit_event": (
        signals.from_cli(
            {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": 1795171590, "rateLimitType": "five_hour"}},
            NOW,
        ),
        Trouble.LIMITED,
        1795171590.0,
    ),
    "rate_limit_event, allowed": (
        signals.from_cli({"type": "rate_limit_event", "rate_limit_info": {"status": "allowed"}}, NOW),
        None,
        None,
    ),
    "api_retry": (
        signals.from_cli({"type": "system", "subtype": "api_retry", "error_status": 429, "error": "rate_limit"}, NOW),
        Trouble.LIMITED,
        None,
    ),
    "assistant error": (signals.from_cli({"type": "assistant", "error": "rate_limit"}, NOW), Trouble.LIMITED, None),
    "result, session limit": (
        signals.from_cli(
            {
                "type": "result",
                "subtype": "success",
                "is_error": True,
                "api_error_status": 429,
                "result": "You've hit your session limit · resets 10:46am (UTC)",
            },
            NOW,
        ),
        Trouble.LIMITED,
        NOW + 3600 + 46 * 60 + 3 * 60 + 20,
    ),
    "result, weekly limit": (
        signals.from_cli(
            {"type": "result", "is_error": True, "result": "You've hit your weekly limit · resets Nov 24, 11:53pm (UTC)"}, NOW
        ),
        Trouble.LIMITED,
        1795564380.0,
    ),
    "result, fine": (signals.from_cli({"type": "result", "subtype": "success", "is_error": False, "result": "limit"}, NOW), None, None),
    "text of old CLIs": (signals.from_text("Claude AI usage limit reached|1795171590", NOW), Trouble.LIMITED, 1795171590.0),
    "text, 5-hour": (signals.from_text("You've hit your 5-hour limit · resets 8am (UTC)", NOW), Trouble.LIMITED, NOW - 3400 + 86400),
    "text, rejected": (signals.from_text("API Error: Request rejected (429) · slow down", NOW), Trouble.LIMITED, None),
    "text, overloaded": (signals.from_text("API Error: 529 Overloaded.", NOW), Trouble.OVERLOADED, None),
    "text about limits": (signals.from_text("I set the rate limit of the parser to 5.", NOW), None, None),
    "exit code": (signals.from_exit(129), Trouble.LIMITED, None),
    "exit code, other": (signals.from_exit(1), None, None),
}


@pytest.mark.parametrize("row", SAMPLES)
def test_a_limit_is_read_from_every_source(row: str) -> None:
    signal, trouble, until = SAMPLES[row]
    assert (signal.trouble if signal else None) == trouble
    assert (signal.until if signal else None) == until


def test_windows_are_read_in_both_dialects() -> None:
    windows = from_headers(
        {
            "anthropic-ratelimit-unified-status": "allowed",
            "anthropic-ratelimit-unified-5h-utilization": "0.42",
            "anthropic-ratelimit-unified-5h-reset": "1795171590",
            "anthropic-ratelimit-unified-7d-utilization": "0.3",
            "anthropic-ratelimit-unified-7d_opus-status": "rejected",
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "5",
            "anthropic-ratelimit-requests-reset": "2026-11-20T09:00:00Z",
            "anthropic-ratelimit-input-tokens-limit": "not a number",
            "content-type": "text/event-stream",
        }
    )
    assert {window.name: (round(window.used, 3), window.resets) for window in windows} == {
        "five_hour": (0.42, 1795171590.0),
        "seven_day": (0.3, None),
        "seven_day_opus": (1.0, None),
        "requests": (0.9, NOW + 200),
    }


@given(
    st.dictionaries(
        st.sampled_from(
            [
                f"anthropic-ratelimit-{a}-{b}"
                for a in ("unified-5h", "tokens")
                for b in ("limit", "remaining", "reset", "utilization", "status")
            ]
        ),
        st.text(max_size=12),
    )
)
def test_headers_of_any_content_are_survived(headers: dict[str, str]) -> None:
    assert all(window.used >= 0 for window in from_headers(headers))
    assert moment(headers.get("x", "nan")) is None
    assert retry_after({"retry-after": "soon"}, NOW) is None


def test_a_gauge_crosses_at_the_threshold_and_returns_at_the_reset() -> None:
    gauge = Gauge(0.8)
    gauge.see([Window("five_hour", 0.79, NOW + 100)], NOW)
    assert gauge.crossed_until(NOW) is None
    gauge.see([Window("five_hour", 0.8, NOW + 100)], NOW)
    assert gauge.crossed_until(NOW) == NOW + 100
    assert gauge.crossed_until(NOW + 99) == NOW + 100
    assert gauge.crossed_until(NOW + 100) is None


def test_a_gauge_does_not_flap_around_its_threshold() -> None:
    gauge = Gauge(0.8)
    crossed = []
    for used in (0.81, 0.79, 0.81, 0.75, 0.71, 0.69, 0.75, 0.79, 0.8):
        gauge.see([Window("tokens", used, NOW + 60)], NOW)
        crossed.append(gauge.crossed_until(NOW) is not None)
    assert crossed == [True, True, True, True, True, False, False, False, True]


def test_a_forecast_names_the_moment_a_window_will_be_full() -> None:
    gauge = Gauge(0.8)
    gauge.see([Window("five_hour", 0.1, NOW + 10_000)], NOW)
    assert gauge.full_at("five_hour", NOW) is None
    gauge.see([Window("five_hour", 0.3, NOW + 10_000)], NOW + 100)
    assert gauge.full_at("five_hour", NOW + 100) == pytest.approx(NOW + 450)
    gauge.see([Window("five_hour", 0.31, NOW + 10_000)], NOW + 9000)
    assert gauge.full_at("five_hour", NOW + 9000) is None  # not before its reset


def test_windows_of_our_own_begin_with_the_first_use_and_end_after_their_span() -> None:
    tracker = Tracker(Tier(five_hour=1000, seven_day=10_000))
    tracker.add(600, NOW)
    tracker.add(300, NOW + 3600)
    five, week = tracker.windows(NOW + 3600)
    assert (five.used, five.resets, five.source) == (0.9, NOW + 5 * 3600, "tracked")
    assert week.used == 0.09
    assert tracker.windows(NOW + 5 * 3600)[0].used == 0.0
    assert Tracker(TIERS["api"]).windows(NOW) == ()


def one(lane: Lane, now: float) -> Ticket:
    ticket = lane.enter(now)
    assert ticket is not None
    return ticket


def test_a_limit_closes_the_lane_for_everybody_until_it_ends_and_then_one_probes() -> None:
    lane = Lane("a")
    ticket = one(lane, NOW)
    lane.bad(ticket, Trouble.LIMITED, NOW + 1, until=NOW + 31)
    lane.leave(ticket)
    assert lane.enter(NOW + 2) is None
    assert lane.opens(NOW + 2) == NOW + 31
    probe = one(lane, NOW + 31)
    assert probe.probe
    assert lane.enter(NOW + 31) is None
    lane.good(probe)
    assert lane.enter(NOW + 31) is not None


def test_a_probe_that_fails_closes_the_lane_for_longer() -> None:
    lane = Lane("a", Pace(first=2, longest=60))
    now, waits = NOW, []
    for _ in range(8):
        ticket = one(lane, now)
        lane.bad(ticket, Trouble.OVERLOADED, now)
        lane.leave(ticket)
        waits.append((lane.opens(now) or now) - now)
        now += waits[-1]
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]


def test_failures_of_requests_that_were_out_together_count_once() -> None:
    lane = Lane("a", Pace(start=64))
    tickets = [one(lane, NOW) for _ in range(50)]
    for number, ticket in enumerate(tickets):
        lane.bad(ticket, Trouble.LIMITED, NOW + 1 + number / 1000)
        lane.leave(ticket)
    assert lane.allowed == 32
    assert (lane.opens(NOW + 1) or 0) == pytest.approx(NOW + 3)


def test_one_broken_stream_closes_nothing_and_three_in_a_row_do() -> None:
    lane = Lane("a")
    for number in range(3):
        ticket = one(lane, NOW + number)
        assert lane.opens(NOW + number) is None
        lane.bad(ticket, Trouble.BROKEN, NOW + number)
        lane.leave(ticket)
    assert lane.opens(NOW + 2) is not None


def test_a_request_of_the_clients_own_making_says_nothing_about_the_provider() -> None:
    lane = Lane("a")
    for trouble in (Trouble.INVALID, Trouble.DENIED, Trouble.UNPAID):
        lane.bad(one(lane, NOW), trouble, NOW, until=NOW + 99)
    assert lane.opens(NOW) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["enter", "good", "limited", "broken", "leave"]), st.floats(0, 5)), max_size=80))
def test_a_lane_never_has_more_out_than_allowed_and_always_opens_again(steps: list[tuple[str, float]]) -> None:
    lane, now, out = Lane("a", Pace(start=4, ceiling=8)), NOW, []
    for step, pause in steps:
        now += pause
        if step == "enter" and (ticket := lane.enter(now)) is not None:
            out.append(ticket)
            assert lane.flying <= 8
        elif out and step == "good":
            lane.good(out[-1])
        elif out and step != "enter":
            ticket = out.pop(0)
            if step != "leave":
                lane.bad(ticket, Trouble.LIMITED if step == "limited" else Trouble.BROKEN, now)
            lane.leave(ticket)
    for ticket in out:
        lane.leave(ticket)
    assert lane.flying == 0
    assert 1 <= lane.allowed <= 8
    assert lane.enter(now + 61) is not None


def record(key: str, **more: Any) -> Metered:
    return Metered(key, "r1", "t", 1, "anthropic", "claude-opus-4-8", Usage(1, 10, 5, cost_usd=0.5), NOW, **more)


def test_a_ledger_counts_each_message_once_and_sums_by_every_scope() -> None:
    ledger = Ledger()
    assert ledger.add(record("a"))
    assert not ledger.add(record("a"))
    assert ledger.add(record("b", user="ann", degraded=True))
    assert (ledger.total.requests, ledger.total.cost_usd, ledger.degraded) == (2, 1.0, 1)
    assert ledger.of("task", "r1/t").requests == 2
    assert ledger.of("user", "ann").requests == 1


def test_the_summary_says_what_is_used_what_is_left_and_when_it_comes_back() -> None:
    ledger, gauge, lane = Ledger(), Gauge(0.8), Lane("anthropic")
    ledger.add(record("a"))
    gauge.see([Window("five_hour", 0.5, NOW + 7200)], NOW - 600)
    gauge.see([Window("five_hour", 0.9, NOW + 7200)], NOW)
    document = summarize(ledger, [Standing("anthropic", "anthropic", {"opus": lane}, {"": gauge})], NOW)
    (provider,) = document["providers"]
    assert (provider["state"], provider["returns"]) == ("near-limit", "2026-11-20T10:56:40+00:00")
    assert provider["windows"][0]["full_at"] == "2026-11-20T08:59:10+00:00"
    assert document["by_model"]["claude-opus-4-8"]["cost_usd"] == 0.5
    assert any("will fill its five_hour window" in line for line in document["advice"])

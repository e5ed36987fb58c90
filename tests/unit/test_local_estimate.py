"""Estimates of tokens, and the words for a prompt that does not fit."""

import orjson
import pytest

from claudecluster.gateway.local.estimate import Estimator, raw
from claudecluster.gateway.local.overflow import Overflow, overflow, too_long
from claudecluster.gateway.local.requests.conversation import Conversation, Line, Picture


def talk(size: int) -> Conversation:
    return Conversation((Line("user", "x" * size),))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("the input length exceeds the context length", Overflow()),
        ("the prompt is longer than the context length currently available to the model; shorten the prompt", Overflow()),
        ("input length (9000 tokens) exceeds the model's maximum context length (8192 tokens)", Overflow(9000, 8192)),
        ("prompt is too long: 210 tokens > 200 maximum", Overflow(210, 200)),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4500 in the messages, 500 in the completion).",
            Overflow(4500, 4096),
        ),
        ("This model's maximum context length is 4096 tokens. However, your messages resulted in 4900 tokens.", Overflow(4900, 4096)),
        ("'max_tokens' is too large: 9. This model's maximum context length is 100 tokens and your request has 99 input tokens", Overflow(99, 100)),
        ("The input (9000 tokens) is longer than the model's context length (8192 tokens).", Overflow(9000, 8192)),
        ("request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it", Overflow(9000, 8192)),
        ("the request exceeds the available context size, try increasing it", Overflow()),
        ("Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens", Overflow(0, 4096)),
        ("Error (context_length_exceeded)", Overflow()),
    ],
)  # fmt: skip
def test_each_servers_way_to_say_that_a_prompt_does_not_fit_is_understood(message: str, expected: Overflow) -> None:
    assert overflow(message) == expected


@pytest.mark.parametrize("message", ["model 'x' not found", "does not support tools", "server busy", ""])
def test_other_refusals_are_no_overflow(message: str) -> None:
    assert overflow(message) is None


def test_the_words_are_anthropics_and_the_numbers_make_sense() -> None:
    assert orjson.loads(too_long(50, 200))["error"] == {
        "type": "invalid_request_error",
        "message": "prompt is too long: 201 tokens > 200 maximum",
    }


def test_the_estimate_follows_what_the_server_counts() -> None:
    estimator = Estimator()
    before = estimator.tokens("m", talk(36_000))
    assert before == raw(talk(36_000)) == pytest.approx(10_000, abs=10)
    for _ in range(20):
        estimator.learn("m", talk(36_000), 8000)
    assert estimator.tokens("m", talk(36_000)) == pytest.approx(8000, rel=0.01)
    assert estimator.tokens("other", talk(36_000)) == before
    assert estimator.margin("m") < estimator.margin("other")


def test_counts_of_a_server_that_leaves_out_its_cache_are_not_believed() -> None:
    estimator = Estimator()
    estimator.learn("m", talk(36_000), 120)
    assert estimator.tokens("m", talk(36_000)) == raw(talk(36_000))


def test_a_prompt_that_was_refused_is_known_to_be_too_long_the_next_time() -> None:
    estimator = Estimator()
    used = estimator.refused("m", talk(36_000), 12_000)
    assert used > 12_000
    assert estimator.tokens("m", talk(36_000)) > 12_000


def test_images_and_other_scripts_count() -> None:
    seen = Conversation((Line("user", "hi", (Picture("image/png", "x"),)),))
    assert raw(seen) > 800
    assert raw(Conversation((Line("user", "漢" * 100),))) > raw(Conversation((Line("user", "k" * 100),)))

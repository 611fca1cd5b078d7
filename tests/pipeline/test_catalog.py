"""Which names reach which deployments."""

from __future__ import annotations

import pytest
from fakes.configs import deployment, settings

from pipeline.catalog import Catalog, allows
from pipeline.settings import RouterSettings


def catalog(*deployments, **aliases: str) -> Catalog:
    return Catalog(settings(*deployments, router=RouterSettings(aliases=aliases)))


def test_a_group_holds_all_entries_of_its_name_in_order():
    first, other, second = deployment("a", "openai/x"), deployment("b", "openai/y"), deployment("a", "azure/x")
    group = catalog(first, other, second).group("a")
    assert group.deployments == (first, second)
    assert group.name == "a"


def test_a_group_knows_the_prompt_its_deployments_agree_on():
    fields = {"prompt_id": "p", "prompt_version": 2, "prompt_label": "live", "prompt_variables": {"x": 1}}
    group = catalog(deployment("a", **fields)).group("a")
    assert {name: getattr(group, name) for name in fields} == fields


def test_an_unknown_name_has_no_group():
    assert catalog(deployment("a")).group("b") is None


def test_an_alias_leads_to_its_group_and_comes_before_a_group_of_its_name():
    known = catalog(deployment("a", "openai/a"), deployment("b", "openai/b"), fast="a", b="a")
    assert known.group("fast").name == "a"
    assert known.group("b").name == "a"
    assert known.names() == ("a", "b", "fast")


@pytest.mark.parametrize(
    ("name", "pattern", "model", "expected"),
    [
        ("openai/gpt-4o", "openai/*", "openai/*", "openai/gpt-4o"),
        ("gpt-x", "*", "azure/*", "azure/gpt-x"),
        ("anthropic/claude", "*", "*", "anthropic/claude"),
        ("gpt-x", "*", "*", "openai/gpt-x"),
        ("my-gpt-4-eu", "my-*-eu", "azure/*", "azure/gpt-4"),
        ("my-gpt", "my-*", "openai/fixed", "openai/fixed"),
    ],
)
def test_a_wildcard_fills_in_what_was_asked_for(name, pattern, model, expected):
    group = catalog(deployment(pattern, model)).group(name)
    assert group.name == name
    assert group.deployments[0].model == expected


def test_exact_names_come_before_wildcards_and_longer_wildcards_before_shorter_ones():
    known = catalog(
        deployment("*", "openai/any"), deployment("gpt-*", "openai/gpt"), deployment("gpt-4", "openai/exact")
    )
    assert known.group("gpt-4").deployments[0].model == "openai/exact"
    assert known.group("gpt-5").deployments[0].model == "openai/gpt"
    assert known.group("claude").deployments[0].model == "openai/any"


@pytest.mark.parametrize("name", ["openai/*", "openai/", "*", "azure/x", ""])
def test_a_wildcard_does_not_match_itself_or_nothing(name):
    assert catalog(deployment("openai/*", "openai/*")).group(name) is None


def test_a_group_is_found_by_the_model_it_serves_only_when_there_is_one():
    known = catalog(deployment("a", "openai/x"), deployment("b", "openai/y"), deployment("c", "openai/y"))
    assert known.group_serving("openai/x").name == "a"
    assert known.group_serving("openai/y") is None
    assert known.group_serving("openai/z") is None


def test_the_closest_names_come_best_first():
    known = catalog(*(deployment(name) for name in ("gpt-4", "gpt-4o", "claude", "gemini")))
    assert known.closest("gpt-4p")[0] in {"gpt-4", "gpt-4o"}
    assert known.closest("zzzzzz") == ()
    assert known.closest("zzzzzz", ["a", "b"]) == ("a", "b")
    assert known.closest("x" * 100_000) == ()


@pytest.mark.parametrize(
    ("patterns", "name", "allowed"),
    [
        ((), "anything", True),
        (("gpt-4",), "gpt-4", True),
        (("gpt-4",), "gpt-4o", False),
        (("gpt-*",), "gpt-4o", True),
        (("claude", "*-mini"), "gpt-4o-mini", True),
        (("GPT-*",), "gpt-4", False),
        (("gpt-?",), "gpt-4", False),
    ],
)
def test_a_key_may_use_the_names_and_wildcards_it_lists(patterns, name, allowed):
    assert allows(patterns, name) is allowed

"""Where the gateway is, as it was said and as it is said to people."""

from __future__ import annotations

from workers.batch_command.places import Place


def test_a_command_that_is_shown_finds_the_same_gateway_and_shows_no_key() -> None:
    assert Place(key="sk-mine").command("batch watch batch_1") == "promptmill batch watch batch_1"
    place = Place(config="my conf/config.yaml", data_dir="there", key="sk-mine")
    assert place.command("down") == "promptmill down -c 'my conf/config.yaml' --data-dir there"
    assert Place(url="http://gw").command("batch list") == "promptmill batch list --url http://gw"

"""Who gets which variables."""

from __future__ import annotations

from fakes.configs import deployment, settings

from pipeline.settings import Key, PromptSettings, Secret, StorageSettings
from pipeline.surroundings import WITHHELD, common, for_stages

KEYS = (
    Key(name="master", values=(Secret("os.environ/OUR_MASTER"),), master=True),
    Key(name="a", values=(Secret("x"),)),
)
CONFIGURED = settings(
    deployment(api_key=Secret("os.environ/PROVIDER_KEY")),
    deployment("b", api_key=Secret("os.environ/SHARED_KEY")),
    deployment("c", api_key=None),
    deployment("d", api_key=Secret("sk-literal")),
    keys=KEYS,
    prompts=PromptSettings(environment=("SHARED_KEY",)),
    storage=StorageSettings(url="s3://b", options={"token": Secret("os.environ/BUCKET_KEY"), "region": Secret("x")}),
    environment={"FROM_CONFIG": "1"},
    source="/etc/config.yaml",
    data_dir="/var/data",
)
ENVIRONMENT = {
    "PROVIDER_KEY": "p",
    "SHARED_KEY": "s",
    "OUR_MASTER": "m",
    "BUCKET_KEY": "b",
    "LITELLM_MASTER_KEY": "l",
    "LANGFUSE": "f",
}


def test_a_resolve_process_gets_no_key_of_providers_clients_and_storage() -> None:
    found = for_stages(("resolve",), CONFIGURED, ENVIRONMENT)
    assert found == {
        "SHARED_KEY": "s",
        "LANGFUSE": "f",
        "OUR_MASTER": WITHHELD,
        "LITELLM_MASTER_KEY": WITHHELD,
        "PROMPTMILL_WITHHELD": "BUCKET_KEY,LITELLM_MASTER_KEY,OUR_MASTER,PROMPTMILL_MASTER_KEY,PROVIDER_KEY",
    }


def test_a_process_that_calls_providers_gets_everything() -> None:
    for stages in ((), ("dispatch",), ("resolve", "dispatch")):
        assert for_stages(stages, CONFIGURED, ENVIRONMENT) == ENVIRONMENT


def test_every_process_learns_where_things_are() -> None:
    assert common(CONFIGURED, {"A": "1", "FROM_CONFIG": "0"}, "unix:///s") == {
        "A": "1",
        "FROM_CONFIG": "1",
        "REDIS_URL": "unix:///s",
        "PROMPTMILL_CONFIG": "/etc/config.yaml",
        "PROMPTMILL_DATA_DIR": "/var/data",
    }

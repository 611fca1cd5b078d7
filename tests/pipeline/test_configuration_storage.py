"""`storage` and its options: what is an address, and what does not belong into a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.config_files import MODEL, ConfigFiles

from pipeline.settings import Secret, StorageSettings


@pytest.fixture
def files(tmp_path: Path) -> ConfigFiles:
    return ConfigFiles(tmp_path)


def storage(*lines: str) -> str:
    return MODEL + "promptmill_settings:\n" + "".join(f"  {line}\n" for line in lines)


def options(line: str) -> str:
    return storage("storage: s3://bucket", "storage_options:", f"  {line}")


def test_files_are_in_the_data_directory_unless_told_otherwise(files: ConfigFiles) -> None:
    assert files.load(MODEL).storage == StorageSettings()


@pytest.mark.parametrize("url", ["s3://bucket", "s3://my-bucket/a/b.c/", "gs://bucket/prefix", "az://container/x"])
def test_a_bucket_and_a_prefix_are_an_address(files: ConfigFiles, url: str) -> None:
    assert files.load(storage(f"storage: {url}")).storage.url == url


@pytest.mark.parametrize("url", ["/var/files", "file:///var", "https://host/bucket", "s3://", "s3://key:secret@b", "b"])
def test_other_addresses_are_errors(files: ConfigFiles, url: str) -> None:
    (error,) = files.errors(storage(f"storage: {url}"))
    assert "give s3://bucket/prefix, gs://bucket/prefix or az://container/prefix" in error


def test_options_are_texts_flags_and_numbers_and_may_come_from_variables(files: ConfigFiles) -> None:
    text = storage(
        "storage: s3://bucket",
        "storage_options: {endpoint: 'http://localhost:9000', allow_http: true, timeout: 5s,",
        "  secret_access_key: os.environ/KEY, service_account_path: /etc/key.json, skip_signature: no}",
    )
    assert files.load(text).storage.options == {
        "endpoint": Secret("http://localhost:9000"),
        "allow_http": Secret("true"),
        "timeout": Secret("5s"),
        "secret_access_key": Secret("os.environ/KEY"),
        "service_account_path": Secret("/etc/key.json"),
        "skip_signature": Secret("false"),
    }


@pytest.mark.parametrize("name", ["access_key_id", "secret_access_key", "session_token", "account_key", "sas_key"])
def test_a_credential_in_the_file_is_an_error_that_does_not_repeat_it(files: ConfigFiles, name: str) -> None:
    (error,) = files.errors(options(f"{name}: its-value"))
    assert f"storage_options.{name}: a credential does not belong into this file; write os.environ/NAME" in error
    assert "its-value" not in error


def test_a_wrong_name_or_value_of_an_option_is_an_error(files: ConfigFiles) -> None:
    assert "small letters" in files.errors(options("End-point: x"))[0]
    assert "storage_options.endpoint" in files.errors(options("endpoint: [x]"))[0]
    assert "not a mapping" in files.errors(storage("storage: s3://bucket", "storage_options: x"))[0]


def test_options_without_a_store_are_an_error(files: ConfigFiles) -> None:
    assert "there is no `storage`" in files.errors(storage("storage_options: {region: x}"))[0]

"""A setting comes from the command line, else the environment, else the file, else its default; and a wrong
one is explained."""

from pathlib import Path

import pytest

from cluster.server.settings import Settings, SettingsError, load_settings, parse_size_bytes


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "gearfleet.toml"


def test_the_defaults_are_those_that_are_promised() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.durability) == ("0.0.0.0", 4730, "fsync")
    assert (settings.job_retries, settings.worker_wakeup, settings.exceptions) == (-1, 0, False)
    assert settings.max_payload_bytes == 64 * 1024 * 1024
    assert settings.data_dir == Path("gearfleet-data")
    assert settings.handle_prefix == f"H:{settings.name}"


def test_each_source_gives_way_to_the_one_before_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("port = 1\nbacklog = 2\nhost = 'file'\nmax_payload_bytes = '1M'\n")
    monkeypatch.setenv("GEARFLEET_PORT", "3")
    monkeypatch.setenv("GEARFLEET_BACKLOG", "4")

    settings = load_settings({"port": "5"}, config=config)

    assert (settings.port, settings.backlog, settings.host) == (5, 4, "file")
    assert settings.max_payload_bytes == 1024 * 1024


def test_the_file_may_be_named_by_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("name = 'from-file'\n")
    monkeypatch.setenv("GEARFLEET_CONFIG", str(config))
    assert load_settings().handle_prefix == "H:from-file"


def test_what_kubernetes_puts_into_the_environment_is_no_port(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("port = 4731\n")
    monkeypatch.setenv("GEARFLEET_PORT", "tcp://10.0.0.1:4730")
    assert load_settings(config=config).port == 4731
    assert Settings().port == 4730


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("64M", 64 << 20),
        ("64MiB", 64 << 20),
        ("1g", 1 << 30),
        ("512k", 512 << 10),
        ("4096", 4096),
        ("7 KB", 7168),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": "70000"}, "--port cannot be '70000': give a whole number from 0 to 65535"),
        ({"port": "x"}, "--port cannot be 'x': give a whole number from 0 to 65535"),
        ({"durability": "disk"}, "--durability cannot be 'disk': give one of fsync, os, memory"),
        ({"exceptions": "maybe"}, "--exceptions cannot be 'maybe': give true or false"),
        ({"max_payload_bytes": "64X"}, "--max-payload cannot be '64X': give a size such as 64M"),
        ({"name": "a b"}, "--name cannot be 'a b': give 1 to 32 letters, digits"),
        ({"handle_prefix": "a b"}, "leave out spaces"),
        ({"handle_prefix": "ü" * 19}, "it has 38 bytes; use at most 36"),
        ({"tls_certificate": "c"}, "set tls_key too"),
        ({"tls_key": "k"}, "set tls_certificate too"),
        ({"tls_ca": "a"}, "set tls_certificate and tls_key too"),
        ({"worker_wakeup": "256"}, "from 0 to 255"),
        ({"job_retries": "-2"}, "from -1 to"),
    ],
)
def test_a_wrong_value_is_answered_with_what_to_write(values: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(values)
    assert message in str(error.value)


def test_all_faults_are_named_at_once_with_their_sources(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("backlog = 0\n")
    monkeypatch.setenv("GEARFLEET_PORT", "high")
    with pytest.raises(SettingsError) as error:
        load_settings({"durability": "no"}, config=config)
    starts = sorted(line.split(" cannot")[0] for line in str(error.value).splitlines())
    assert starts == ["--durability", "GEARFLEET_PORT", f"backlog in {config}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "prot in {config} is no setting; the nearest is port"),
        ("max-payload-bytes = 1", "the nearest is max_payload_bytes"),
        ("[server]\nport = 1", "[server] in {config}: there are no tables here"),
        ("port = = 1", "{config} is no TOML"),
    ],
)
def test_a_file_with_a_slip_is_refused(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    with pytest.raises(SettingsError) as error:
        load_settings(config=config)
    assert message.format(config=config) in str(error.value)


def test_a_file_that_is_missing_is_named(config: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(config=config)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]

"""A setting comes from the command line, else the environment, else the file, else its default; and a wrong
one is explained."""

from pathlib import Path

import pytest

from cluster.server.settings import (
    Settings,
    SettingsError,
    environment_notes,
    load_settings,
    parse_size_bytes,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "gearfleet.toml"


def test_the_defaults_are_those_that_are_promised() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.durability) == ("::", 4730, "fsync")
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
        ({"durability": "fsnyc"}, "give one of fsync, os, memory. Did you mean 'fsync'?"),
        ({"log_level": "WARN"}, "give one of debug, info, warning, error. Did you mean 'warning'?"),
        ({"exceptions": "maybe"}, "--exceptions cannot be 'maybe': give true or false"),
        ({"max_payload_bytes": "64X"}, "--max-payload cannot be '64X': give a size such as 64M"),
        ({"name": "a b"}, "--name cannot be 'a b': give 1 to 32 letters, digits"),
        ({"handle_prefix": "a b"}, "leave out spaces"),
        ({"handle_prefix": "a\x1b[31m"}, "what else does not print"),
        ({"handle_prefix": "ü" * 19}, "it has 38 bytes; use at most 36"),
        ({"tls_certificate": "c"}, "set tls_key too"),
        ({"tls_key": "k"}, "set tls_certificate too"),
        ({"tls_ca": "a"}, "set tls_certificate and tls_key too"),
        ({"worker_wakeup": "256"}, "from 0 to 255"),
        ({"job_retries": "-2"}, "from -1 to"),
        ({"peer_remap": "10.0.0.2:4731"}, "'10.0.0.2:4731' is no NAME=HOST:PORT"),
        ({"peer_remap": "b=host:0"}, "'b=host:0' is no NAME=HOST:PORT"),
        ({"peer_remap": "b=one,b=two"}, "b is there twice"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = true", "port in {config} cannot be true: give a whole number from 0 to 65535"),
        ("port = 4730.0", "port in {config} cannot be 4730.0: give a whole number"),
        ("port = '4730'", "port in {config} cannot be '4730': give a whole number"),
        ("reclaim_seconds = false", "reclaim_seconds in {config} cannot be false: give a number from"),
        ("reclaim_seconds = '2'", "reclaim_seconds in {config} cannot be '2': give a number from"),
        ("exceptions = 1", "exceptions in {config} cannot be 1: give true or false"),
        ("salvage = 'on'", "salvage in {config} cannot be 'on': give true or false"),
        ("max_payload_bytes = true", "max_payload_bytes in {config} cannot be true: give a size such as 64M"),
        ("log_file = 1", "log_file in {config} cannot be 1: give a path"),
        ("zone = 1", "zone in {config} cannot be 1: give"),
        ("durability = 1", "durability in {config} cannot be 1: give one of fsync, os, memory"),
        ("etcd = ['one:2379', 'two:2379']", "etcd in {config} cannot be ['one:2379', 'two:2379']: give"),
    ],
)
def test_a_value_of_another_type_is_refused_and_not_guessed_at(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    with pytest.raises(SettingsError) as error:
        load_settings(config=config)
    assert message.format(config=config) in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"port": True},
        {"port": 4730.0},
        {"reclaim_seconds": True},
        {"exceptions": 1},
        {"segment_bytes": 4096.0},
    ],
)
def test_a_program_that_sets_a_value_of_another_type_is_told_so(values: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=r"cannot be .*: give "):
        load_settings(values)


def test_whole_numbers_are_numbers_and_sizes_are_texts_too(config: Path) -> None:
    config.write_text("reclaim_seconds = 3\nsegment_bytes = '1M'\nmax_payload_bytes = 4096\nsalvage = true\n")
    settings = load_settings(config=config)
    assert (settings.reclaim_seconds, settings.segment_bytes) == (3.0, 1 << 20)
    assert (settings.max_payload_bytes, settings.salvage) == (4096, True)


def test_hosts_that_differ_late_in_their_names_are_different_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for host in ("ip-10-0-0-1-eu-central-1-internal-a", "ip-10-0-0-1-eu-central-1-internal-b"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        names.append(load_settings().name)
        assert load_settings().name == names[-1]
    assert names[0] != names[1]
    assert all(len(name) == 32 and name.startswith("ip-10-0-0-1-eu-central-") for name in names)


def test_a_short_host_name_is_the_name_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 32 + ".example.org")
    assert load_settings().name == "h" * 32


def test_a_file_that_is_missing_is_named(config: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(config=config)


def test_where_other_nodes_are_reached_is_a_list_by_name() -> None:
    settings = load_settings({"peer_remap": "b=10.0.0.2:14731, c=[::1]"})
    assert settings.peer_places == {"b": ("10.0.0.2", 14731), "c": ("::1", 4731)}
    assert load_settings({"peer_remap": settings.peer_remap}).peer_places == settings.peer_places
    assert load_settings().peer_places == {}


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


FLEET = {"etcd": "127.0.0.1:2379"}


def test_the_defaults_of_a_fleet_are_those_that_are_promised() -> None:
    settings = load_settings({**FLEET, "host": "10.0.0.1"})
    assert (settings.fleet, settings.replicas) == ("default", 3)
    assert (settings.min_in_sync, settings.bootstrap_nodes) == (2, 3)
    assert (settings.lease_seconds, settings.keepalive_seconds, settings.rpc_timeout_seconds) == (5, 1.0, 1.5)
    assert (settings.peer_host, settings.peer_port, settings.http_host) == ("10.0.0.1", 4731, "10.0.0.1")
    assert settings.advertise


@pytest.mark.parametrize(("replicas", "majority"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_a_majority_is_counted_from_the_replicas(replicas: int, majority: int) -> None:
    settings = load_settings({"replicas": replicas})
    assert (settings.min_in_sync, settings.bootstrap_nodes) == (majority, replicas)


def test_http_is_for_fleets_and_for_those_who_ask() -> None:
    assert not load_settings().http_listens
    assert load_settings({"http_port": "0"}).http_listens
    assert load_settings(FLEET).http_listens
    assert not load_settings({**FLEET, "http_port": "-1"}).http_listens


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("etcd-1:2379", [("etcd-1", 2379)]),
        ("etcd-1, 10.0.0.2:1", [("etcd-1", 2379), ("10.0.0.2", 1)]),
        ("[::1]:2380,[fe80::1]", [("::1", 2380), ("fe80::1", 2379)]),
    ],
)
def test_etcd_has_one_endpoint_or_several(text: str, endpoints: list[tuple[str, int]]) -> None:
    assert list(load_settings({"etcd": text}).etcd_endpoints) == endpoints


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"etcd": "http://a:1"}, "as HOST:PORT, without a scheme; etcd_ca turns TLS on"),
        ({"etcd": "a:1,,b:2"}, "'' is no HOST:PORT; give a list such as"),
        ({"etcd": "a:70000"}, "'a:70000' is no HOST:PORT"),
        ({"etcd": "::1"}, "'::1' is no HOST:PORT"),
        ({"etcd": "a:2379,a"}, "a is there twice"),
        ({"etcd": ",".join(f"a{n}" for n in range(17))}, "it has 17 endpoints; give at most 16"),
        ({"fleet": "a/b"}, "--fleet cannot be 'a/b': give 1 to 32 letters"),
        ({"advertise": "http://a"}, "--advertise cannot be 'http://a': give a host name or an address alone"),
        ({"advertise": "a:4730"}, "without scheme or port"),
        ({"advertise": ""}, "give a host name"),
        ({"advertise": "0.0.0.0"}, "no other machine can connect to that"),
        ({"advertise": "::"}, "no other machine can connect to that"),
        ({"replicas": "0"}, "from 1 to 7"),
        ({"replicas": "2", "min_in_sync": "3"}, "there are 2 replicas; give 1 to 2, or 0 for a majority"),
        ({"bootstrap_nodes": "1"}, "fewer than 2 nodes could acknowledge no job"),
        ({**FLEET, "durability": "os"}, "set durability to fsync, not os"),
        ({**FLEET, "durability": "memory"}, "or leave etcd out"),
        (
            {**FLEET, "lease_seconds": "4"},
            "0.5 is 4.5, and a slow answer of etcd would look like a dead node",
        ),
        ({**FLEET, "keepalive_seconds": "2"}, "Set lease_seconds to 6 or more, or lower the other two"),
        ({"etcd_user": "u"}, "set etcd_password_file too"),
        ({"etcd_password_file": "f"}, "set etcd_user too"),
        ({"etcd_certificate": "c", "etcd_ca": "a"}, "set etcd_key too"),
        ({"etcd_certificate": "c", "etcd_key": "k"}, "set etcd_ca too"),
        ({"peer_certificate": "c"}, "set peer_key and peer_ca too"),
        ({"peer_certificate": "c", "peer_key": "k"}, "set peer_ca too"),
        ({"data_dir": ""}, "--data-dir cannot be '': give a path"),
        ({"log_file": ""}, "--log-file cannot be '': give a path"),
    ],
)
def test_a_wrong_value_of_a_fleet_is_answered_with_what_to_write(
    values: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(values)
    assert message in str(error.value)


def test_the_shortest_lease_that_keeps_its_distance_is_taken() -> None:
    values = {"lease_seconds": 1, "keepalive_seconds": 0.1, "rpc_timeout_seconds": 0.2}
    assert load_settings({**FLEET, **values}).lease_seconds == 1
    load_settings({"lease_seconds": 1})  # a node that stands alone has no lease


def test_what_kubernetes_says_of_other_services_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARFLEET_HTTP_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("GEARFLEET_PEER_PORT", "tcp://10.0.0.1:81")
    assert (load_settings().http_port, load_settings().peer_port) == (4732, 4731)


def test_node_is_another_word_for_name() -> None:
    from cluster.cli.server import server

    context = server.make_context("server", ["--node", "n1"])
    assert context.params["name"] == "n1"


def test_a_misspelt_variable_is_told_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_notes() == []
    for name in ("GEARFLEET_PORT", "GEARFLEET_CONFIG", "GEARFLEET_PEER", "GEARFLEET_SECRET_FILE"):
        monkeypatch.setenv(name, "x")
    # Kubernetes, for services called gearfleet, gearfleet-etcd and gearfleet-1
    for name in (
        *("GEARFLEET_SERVICE_HOST", "GEARFLEET_SERVICE_PORT_GEARMAN", "GEARFLEET_ETCD_SERVICE_PORT"),
        *("GEARFLEET_PORT_4730_TCP", "GEARFLEET_ETCD_PORT_2379_TCP_ADDR", "GEARFLEET_1_PORT_4730_UDP_PROTO"),
    ):
        monkeypatch.setenv(name, "10.0.0.1")
    monkeypatch.setenv("GEARFLEET_ETCD_PORT", "tcp://10.0.0.1:2379")
    assert environment_notes() == []
    monkeypatch.setenv("GEARFLEET_DATADIR", "/data")
    assert environment_notes() == [
        "GEARFLEET_DATADIR is no setting and is ignored; the nearest is GEARFLEET_DATA_DIR"
    ]


@pytest.mark.parametrize(
    ("typed", "setting"),
    [
        ("NODE", "NAME"),
        ("MAX_MEMORY", "MAX_MEMORY_BYTES"),
        ("MAX_UNREAD", "MAX_UNREAD_BYTES"),
        ("PRT", "PORT"),
    ],
)
def test_a_name_that_follows_from_the_option_is_told_with_its_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: str, setting: str
) -> None:
    monkeypatch.setenv(f"GEARFLEET_{typed}", "1")
    assert environment_notes() == [
        f"GEARFLEET_{typed} is no setting and is ignored; the nearest is GEARFLEET_{setting}"
    ]
    config = tmp_path / "gearfleet.toml"
    config.write_text(f"{typed.lower()} = 1")
    with pytest.raises(SettingsError, match=f"the nearest is {setting.lower()}$"):
        load_settings(config=config)


@pytest.mark.parametrize("typed", ["listen", "zzz"])
def test_nothing_is_guessed_for_a_name_that_is_like_no_setting(
    monkeypatch: pytest.MonkeyPatch, config: Path, typed: str
) -> None:
    monkeypatch.setenv(f"GEARFLEET_{typed.upper()}", "1")
    assert environment_notes() == [
        f"GEARFLEET_{typed.upper()} is no setting and is ignored; gearfleet server --help lists all"
    ]
    config.write_text(f"{typed} = 1")
    with pytest.raises(
        SettingsError, match=f"^{typed} in .* is no setting; gearfleet server --help lists all$"
    ):
        load_settings(config=config)


def test_a_fleet_takes_payloads_that_fit_into_one_message() -> None:
    with pytest.raises(SettingsError, match="at most 67108864 \\(64M\\)"):
        load_settings({"etcd": "127.0.0.1:2379", "max_payload_bytes": 64 * 1024 * 1024 + 1})


def test_a_damaged_node_of_a_fleet_begins_anew_and_is_not_salvaged() -> None:
    with pytest.raises(SettingsError, match="leave --salvage out"):
        load_settings({"etcd": "127.0.0.1:2379", "salvage": True})

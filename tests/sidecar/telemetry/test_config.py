"""What the OTEL_* and PODLINK_* settings come to, and which are refused."""

import pytest

from kit.settings import ConfigInvalid, Settings
from sidecar.telemetry.config import TelemetryConfig


def config_from(**env: str) -> TelemetryConfig:
    return TelemetryConfig.from_settings(Settings(env))


def test_nothing_set_means_no_spans() -> None:
    assert config_from().endpoint == ""


OTEL = "OTEL_EXPORTER_OTLP_ENDPOINT"
OTEL_TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
OURS = "PODLINK_OTLP_ENDPOINT"
INSECURE = "PODLINK_INSECURE_OTLP"
HTTP = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


@pytest.mark.parametrize(
    ("env", "endpoint", "plaintext"),
    [
        ({OURS: "traces.podlink-system.svc:4317"}, "traces.podlink-system.svc:4317", 0),
        ({OURS: "traces:4317", INSECURE: "true"}, "traces:4317", 1),
        ({OURS: "http://traces:4317", INSECURE: "true"}, "traces:4317", 1),
        ({OURS: "https://otel.example:443"}, "otel.example:443", 0),
        ({OTEL: "http://otel:4317/"}, "otel:4317", 1),
        ({OTEL: "otel:4317"}, "otel:4317", 0),
        ({OTEL: "otel:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"}, "otel:4317", 1),
        ({OTEL: "http://otel"}, "otel:4317", 1),
        ({OTEL: "http://[fd00::1]:4317"}, "[fd00::1]:4317", 1),
        ({OTEL_TRACES: "https://a:1", OTEL: "http://b:1", OURS: "c:1"}, "a:1", 0),
    ],
)
def test_the_most_specific_endpoint_counts(
    env: dict[str, str], endpoint: str, plaintext: int
) -> None:
    config = config_from(**env)
    assert (config.endpoint, config.plaintext) == (endpoint, bool(plaintext))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PODLINK_OTLP_ENDPOINT", "unix:///run/otel.sock"),
        ("PODLINK_OTLP_ENDPOINT", "http://user:pass@otel:4317"),
        ("PODLINK_OTLP_ENDPOINT", "otel:port"),
        ("PODLINK_OTLP_ENDPOINT", "http://otel:4317/v1/traces"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "no-equals-sign"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=%0d%0ab: c"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),  # the endpoint is our own store
        ("PODLINK_OTLP_ENDPOINT", "http://traces:4317"),  # plaintext by a value alone
        ("PODLINK_INSECURE_OTLP", "yes"),
        ("PODLINK_ACCESS_LOG", "some"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "ten"),
        ("OTEL_RESOURCE_ATTRIBUTES", "novalue"),
        ("OTEL_SDK_DISABLED", "yes"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigInvalid, match=name):
        config_from(**{"PODLINK_OTLP_ENDPOINT": "otel:4317", name: value})


@pytest.mark.parametrize(
    ("sampler", "argument", "ratio"),
    [
        ("", "", 1.0),
        ("always_off", "", 0.0),
        ("parentbased_always_on", "0.1", 1.0),
        ("parentbased_traceidratio", "0.25", 0.25),
        ("traceidratio", "", 1.0),
    ],
)
def test_the_sampler_comes_to_a_ratio(sampler: str, argument: str, ratio: float) -> None:
    assert config_from(OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG=argument).ratio == ratio


@pytest.mark.parametrize("argument", ["-0.1", "1.1", "nan", "half"])
def test_a_ratio_out_of_range_is_refused(argument: str) -> None:
    with pytest.raises(ConfigInvalid, match="OTEL_TRACES_SAMPLER_ARG"):
        config_from(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG=argument)


def test_the_pod_is_named_by_its_service_account_and_nobody_else_can_rename_it() -> None:
    pod = {"POD_NAME": "api-1", "POD_NAMESPACE": "shop", "POD_SERVICE_ACCOUNT": "api"}
    found = config_from(OTEL_RESOURCE_ATTRIBUTES="team=a%20b,k8s.pod.name=other", **pod)
    attributes = found.resource.attributes()
    assert attributes["service.name"] == "api"
    assert attributes["k8s.pod.name"] == "api-1"
    assert attributes["team"] == "a b"
    unnamed = config_from(**{**pod, "POD_SERVICE_ACCOUNT": "default"})
    assert unnamed.resource.attributes()["service.name"] == "api-1"


def test_our_own_store_is_reached_by_mutual_tls_unless_a_setting_says_insecure() -> None:
    assert config_from(**{OURS: "traces:4317"}).workload_tls
    assert not config_from(**{OURS: "traces:4317", INSECURE: "true"}).workload_tls
    assert not config_from(**{OURS: "https://traces:4317"}).workload_tls
    assert not config_from(**{OTEL: "traces:4317"}).workload_tls


@pytest.mark.parametrize(
    ("env", "endpoint", "path"),
    [
        ({OTEL: "http://otel"}, "otel:4318", "/v1/traces"),
        ({OTEL: "https://otel:443/otlp/"}, "otel:443", "/otlp/v1/traces"),
        ({OTEL_TRACES: "https://otel/custom"}, "otel:4318", "/custom"),
        ({OTEL_TRACES: "https://otel"}, "otel:4318", "/"),
    ],
)
def test_over_http_the_general_endpoint_is_a_base_and_the_one_for_traces_is_taken_as_it_is(
    env: dict[str, str], endpoint: str, path: str
) -> None:
    config = config_from(**HTTP, **env)
    assert (config.protocol, config.endpoint, config.path) == ("http", endpoint, path)

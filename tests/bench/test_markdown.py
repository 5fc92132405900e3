from bench.figures import figures
from bench.markdown import row


def test_a_figure_becomes_a_line_of_the_table() -> None:
    samples = {"cpu_per_connection": {"podlink": [340.0, 350.0], "envoy": [1000.0, 1000.0]}}
    (measured,) = (f for f in figures(samples) if f.kind.name == "cpu_per_connection")
    line = row(measured.as_json())
    assert line.startswith("| CPU per new connection | 345 us ±1 % | 1,000 us ±0 % | - | **0.3")
    assert line.endswith("** | 0.25 |")

"""The command line, and the table in the README that it renders."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.broyden.cases import CASES, GPU_CASES, Case
from benchmarks.broyden.providers import PROVIDERS
from benchmarks.broyden.suite import BroydenSuite
from benchmarks.provider import find_provider, providers_on
from benchmarks.suites import SUITES, format_markdown, load_report

ROOT = Path(__file__).resolve().parents[2]


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        command.main(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for option in ("--cases", "--providers", "--rounds", "--dtype", "--threads", "--memory"):
        assert option in text
    for option in ("--json", "--plot", "--quick", "--list", "--render"):
        assert option in text
    for option in ("--device", "--regimes", "--tests", "--commit"):
        assert option in text
    assert "examples:" in text
    words = text.split()
    assert all(case.name in text for case in CASES)
    assert all(f"{case.name}," in words for case in GPU_CASES[:-1])


def test_list_names_cases_and_providers(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {case.name}\n" in text for case in (*CASES, *GPU_CASES))
    assert all(f"  {provider.name}: {provider.description}" in text for provider in PROVIDERS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_list_says_what_is_absent_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    after = lines[[line.startswith("  ours-graph:") for line in lines].index(True) + 1]
    assert after.startswith("    absent on cuda: device cuda needs a GPU that torch can use")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eigenvalues"], "invalid choice: 'eigenvalues'"),
        (["--rounds", "0"], "must be at least 1, got 0"),
        (["--plot", "chart.txt"], "ends in .png, .svg, .pdf, but got 'chart.txt'"),
        (["--quick", "--cases", "2x300x8"], "not allowed with argument --quick"),
        (["--list", "--render", "x.json"], "not allowed with argument --list"),
        (["--dtype", "float16"], "invalid choice"),
        (["--device", "tpu"], "invalid choice"),
        (["--tests", "red"], "invalid choice"),
        (["--fast"], "unrecognized arguments"),
    ],
)
def test_bad_arguments_are_rejected(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        command.main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_prints_the_table_and_writes_what_render_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    arguments = ["--cases", "2x300x8", "--providers", "plain", "--rounds", "2"]
    assert command.main([*arguments, "--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert "2x300x8 float32" in captured.out
    assert "round 2 of 2" in captured.err
    assert [case["name"] for case in json.loads(path.read_text())["cases"]] == ["2x300x8"]

    assert command.main(["--render", str(path)]) == 0
    rendered = capsys.readouterr().out
    assert rendered.startswith("| batch × dim, steps | plain |")
    assert f"[{path}]({path})" in rendered


def test_render_links_a_file_of_the_repository_from_its_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.machine.CHECKOUT", tmp_path.resolve())
    results = tmp_path / "benchmarks" / "results"
    arguments = ["--cases", "2x300x8", "--providers", "plain", "--rounds", "1"]
    assert command.main([*arguments, "--json", str(results / "new" / "x.json")]) == 0
    monkeypatch.chdir(results)
    capsys.readouterr()
    assert command.main(["--render", "new/x.json"]) == 0
    link = "benchmarks/results/new/x.json"
    assert f"[{link}]({link})" in capsys.readouterr().out


@pytest.mark.parametrize("instead", [["--list"], ["--render", "x.json"]])
@pytest.mark.parametrize(
    "option",
    [
        ["--cases", "2x300x8"],
        ["--quick"],
        ["--providers", "plain"],
        ["--rounds", "9"],
        ["--dtype", "float32"],
        ["--threads", "1"],
        ["--memory"],
        ["--json", "y.json"],
        ["--plot", "y.png"],
        ["--device", "cpu"],
        ["--regimes"],
        ["--tests", "passed"],
        ["--commit", "abc"],
    ],
)
def test_nothing_else_beside_what_measures_nothing(
    instead: list[str], option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*instead, *option]) == 2
    captured = capsys.readouterr()
    assert f"take no other option, but got {option[0]}; leave them out" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "8x61440"], "BATCHxDIMxSTEPS"),
        (["--cases", "2x300x8,"], "BATCHxDIMxSTEPS"),
        (["--providers", "ours,jax"], "unknown provider 'jax'"),
        (["--memory", "8x"], "BATCHxDIMxSTEPS"),
    ],
)
def test_names_that_the_suite_does_not_have_are_errors_before_measuring(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "round" not in captured.err


def test_a_provider_given_twice_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--cases", "2x300x8", "--providers", "plain,plain"]) == 2
    assert "every provider is measured once, but got plain, plain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"), [("file/x.json", "exists"), ("folder", "folder is a folder")]
)
def test_an_output_that_cannot_be_written_is_found_before_measuring(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    arguments = ["--cases", "2x300x8", "--providers", "plain", "--json", str(tmp_path / name)]
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "round" not in captured.err


def test_a_chart_without_matplotlib_is_an_error_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command.main(["--quick", "--plot", str(tmp_path / "new" / "x.png")]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "error: matplotlib is not installed; it comes with the extra 'bench': "
        "pip install matplotlib jaxopt scipy torchdeq\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_render_of_a_damaged_file_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"suite": "broyden", "schema": 3}', encoding="utf-8")
    assert command.main(["--render", str(path)]) == 2
    assert "the report lacks cases, ceiling, commit, date" in capsys.readouterr().err


def test_a_case_that_reaches_rounding_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--cases", "1x8x30", "--providers", "plain"]) == 2
    assert "take fewer steps" in capsys.readouterr().err


def test_render_of_a_missing_file_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--render", "nowhere.json"]) == 2
    assert "cannot render nowhere.json" in capsys.readouterr().err


def test_readme_tables_are_the_renderings_of_their_committed_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- bench:begin -->\n(.*?)\n<!-- bench:end -->", readme, re.DOTALL)
    assert blocks, "README.md must hold a table between the bench markers"
    for block in blocks:
        sources = re.findall(r"\]\((benchmarks/results/[^)]+\.json)\)", block)
        assert len(sources) == 1, "a table must link the one JSON it was rendered from"
        assert block.strip() == format_markdown(load_report(ROOT / sources[0]), sources[0])


def test_committed_results_load() -> None:
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert results
    for path in results:
        report = load_report(path)
        assert report.refusals == ()
        assert report.tests != "failed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--device", "cuda"]) == 2
    captured = capsys.readouterr()
    assert "error: device cuda needs a GPU that torch can use" in captured.err
    assert captured.out == ""


def test_regimes_are_about_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--cases", "2x300x8", "--providers", "plain", "--regimes"]) == 2
    assert "add --device cuda or leave it out" in capsys.readouterr().err


def test_defaults_follow_the_device() -> None:
    on_cpu = {provider.name for provider in providers_on("cpu", PROVIDERS)}
    on_gpu = {provider.name for provider in providers_on("cuda", PROVIDERS)}
    assert on_cpu == {
        *("ours", "ours-bf16", "reference", "plain", "plain-4k"),
        *("torchdeq", "locuslab", "jaxopt", "scipy"),
    }
    assert on_gpu - on_cpu == {"ours-triton", "ours-graph", "plain-compiled"}
    suite = SUITES["broyden"]
    assert suite.cases("cpu") == CASES
    assert suite.cases("cuda") == GPU_CASES
    assert {case.name for case in suite.cases("cuda", quick=True)} <= {c.name for c in GPU_CASES}


def test_what_the_tests_said_and_the_commit_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    arguments = ["--cases", "2x300x8", "--providers", "plain", "--rounds", "1"]
    assert (
        command.main([*arguments, "--tests", "failed", "--commit", "abc", "--json", str(path)]) == 0
    )
    assert "the tests of this library FAILED on this machine" in capsys.readouterr().out
    assert load_report(path).commit == "abc"
    assert command.main(["--render", str(path)]) == 0
    assert "**The tests of this library FAILED on this machine" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="charts need matplotlib")
def test_quick_prints_the_table_and_writes_json_and_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(BroydenSuite, "cases", lambda self, device, quick=False: (Case(2, 300, 8),))
    monkeypatch.setattr(BroydenSuite, "providers", (find_provider("plain", PROVIDERS),))
    outputs = ["--json", str(tmp_path / "bench.json"), "--plot", str(tmp_path / "bench.png")]
    assert command.main(["broyden", "--quick", *outputs]) == 0
    assert "2x300x8 float32" in capsys.readouterr().out
    (case,) = load_report(tmp_path / "bench.json").cases
    assert case.name == "2x300x8"
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")

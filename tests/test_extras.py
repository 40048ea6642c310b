"A command whose packages are not installed names the part of the kit that brings them."
import sys
from importlib.metadata import PackageNotFoundError, metadata

import pytest
from typer.testing import CliRunner

from ptacl.app import cli, endings
from ptacl.core import workers
from ptacl.course import slides


def without(monkeypatch, package: str, *modules: str):
    "As if the package were not installed, and nobody had imported the modules that need it."
    for module in modules: monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)


def said_by(*words: str) -> str:
    "The sentence with which a command that fails ends."
    result = CliRunner().invoke(cli.app, [*words])
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and "Traceback" not in result.output
    return result.stderr


@pytest.mark.parametrize("words, package, modules", [
    (["run", "table1"], "papermill", ["ptacl.studies.experiments"]),
    (["explore", "--no-browser"], "ipywidgets", ["ptacl.app.explorer"]),
    (["workshop", "build", "out"], "nbconvert", ["ptacl.course.workshop", "ptacl.course.slides"]),
    (["workshop", "check"], "nbclient", ["ptacl.course.workshop"]),
])
def test_what_the_app_needs_is_named(monkeypatch, tmp_path, words, package, modules):
    monkeypatch.chdir(tmp_path)
    without(monkeypatch, package, *modules)
    assert said_by(*words) == f"ptacl: this command needs {package}, which is not installed. Install it: pip install 'ptacl[app]'\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, package", [(["explore", "--no-browser"], "voila"), (["workshop", "start", "out"], "jupyterlab")])
def test_what_runs_in_a_process_of_its_own_is_looked_for_first(monkeypatch, tmp_path, words, package):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(endings, "find_spec", lambda name: None if name == package else object())
    assert f"needs {package}, which" in said_by(*words)
    assert not list(tmp_path.iterdir())


def test_course_and_cluster_are_named(monkeypatch, tmp_path, capsys):
    def gone(name): raise PackageNotFoundError(name)
    monkeypatch.setattr(slides, "distribution", gone)
    assert "pip install 'ptacl[course]'" in said_by("workshop", "build", str(tmp_path / "out"))
    without(monkeypatch, "distributed")
    with pytest.raises(cli.typer.Exit), endings.one_sentence(): list(workers.on_cluster([], "tcp://127.0.0.1:1"))
    assert "pip install 'ptacl[cluster]'" in capsys.readouterr().err


def test_another_missing_package_is_a_fault_of_the_kit(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(endings, "keep_traceback", lambda error: tmp_path / "log")
    with pytest.raises(cli.typer.Exit), endings.one_sentence(): raise ModuleNotFoundError("No module named 'joblib'", name="joblib")
    assert "unforeseen ModuleNotFoundError" in capsys.readouterr().err


def test_every_optional_package_leads_to_an_extra():
    extras = [e for e in metadata("ptacl").get_all("Provides-Extra") if e != "dev"]
    assert sorted(extras) == ["app", "cluster", "course", "export", "formats"]
    assert {endings._extra_of(p) for p in ("plotly", "django-static-mathjax", "django_static_mathjax", "dask", "onnx", "h5py")} == set(extras)
    assert endings._extra_of("torch") == endings._extra_of("ptacl") == endings._extra_of("") == ""

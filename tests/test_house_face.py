"What `import ptacl` offers, and what it costs."
import subprocess
import sys

import pytest

import ptacl

OFFERED = """
    alignment_matrix global_contrastive_loss local_contrastive_loss cosine_local_loss denoise normalize detect_r_peaks
    segment_beats preprocess ECGEncoder CMREncoder read_ecg read_cine phenotype_retrieval linear_probe alignment_map
    alignment_scores simulate Cohort paper_regression paper_retrieval workshop laptop PtaclError PTACL MAE from_pretrained
    save_pretrained Pairs fit ingest AlignmentExplorer""".split()


def in_a_fresh_python(code):
    "What the code prints."
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def loaded_by(statement):
    "Names of all modules that a statement loads."
    return set(in_a_fresh_python(f"import sys; {statement}; print(*sys.modules)"))


def test_the_face_loads_nothing():
    loaded = loaded_by("import ptacl")
    assert not loaded & {"torch", "numpy", "pandas", "matplotlib"}
    assert {name for name in loaded if name.startswith("ptacl")} == {"ptacl"}


@pytest.mark.quiet
def test_the_face_is_quick():
    timed = "from time import perf_counter; t = perf_counter(); import ptacl; print(perf_counter() - t)"
    assert min(float(in_a_fresh_python(timed)[0]) for _ in range(3)) < 0.3


def test_losses_need_no_reader_and_no_trainer():
    loaded = loaded_by("import ptacl.nets.losses")
    assert "torch" in loaded
    assert not loaded & {"accelerate", "neurokit2", "pywt", "kornia", "pydicom", "nibabel", "wfdb", "zarr", "pandas"}
    assert not {name for name in loaded if name.startswith(("ptacl.data", "ptacl.train", "ptacl.signal"))}


def test_the_explorer_loads_no_reader():
    "They are for own recordings, and would hold up its first view."
    loaded = loaded_by("import ptacl.app.explorer")
    assert "zarr" in loaded
    assert not loaded & {"accelerate", "neurokit2", "kornia", "pydicom", "nibabel", "wfdb", "sklearn", "matplotlib.pyplot"}


def test_what_is_offered():
    assert set(OFFERED) <= set(ptacl.__all__) <= set(dir(ptacl))


@pytest.mark.parametrize("name", ptacl.__all__)
def test_a_name_loads_from_its_home(name):
    thing = getattr(ptacl, name)
    module = getattr(thing, "__module__", None)
    assert module is None or module.startswith("ptacl.")


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(ptacl, "nothing")  # noqa: B009


def test_types_are_shipped(pytestconfig):
    root = pytestconfig.rootpath
    assert (root / "ptacl" / "py.typed").exists() and '"py.typed"' in (root / "setup.py").read_text(encoding="utf-8")

"""ECGs as research data come: arrays, tables of leads, aECG, EDF. Read with the right numbers, or refused with what is missing."""
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from makers import ID, aecg, csv, dicom_ecg, edf, eli, hdf5 as hdf5_bytes, mat, muse, npy, npz, record, scp, sierra, strip, voltages

from ptacl.core.errors import PtaclError
from ptacl.core.presets import LEADS
from ptacl.data.ecg_files import FORMATS, read_ecg

FACTS = {"fs": 500, "unit": "mV"}


@pytest.fixture
def x(): return voltages(1000)


def written(tmp_path, name, data, told=None):
    (tmp_path / name).write_bytes(data)
    if told: (tmp_path / name).with_suffix(".json").write_text(json.dumps(told))
    return tmp_path / name


def test_a_rate_is_that_of_all_steps_together(tmp_path):
    "A column of times is rounded to the digits that were written: a single step tells the rate to some per cent."
    for fs, digits in ((300, 4), (512, 4), (360, 4), (240, 4), (1000, 3), (500, 3)):
        wave = voltages(10 * fs)
        rows = [",".join([f"{k / fs:.{digits}f}", *(f"{v:.4f}" for v in column)]) for k, column in enumerate(wave.T)]
        head = ",".join(["time (s)", *(f"{name} (mV)" for name in LEADS)])
        assert read_ecg(written(tmp_path, f"{fs}.csv", "\n".join([head, *rows]).encode())).fs == fs


def test_a_table_with_a_long_cell_takes_no_memory(tmp_path, x):
    long = csv(x).replace(b"\n", b"\n" + b"1" * 200, 2)
    with pytest.raises(PtaclError, match="line 2 has a cell of more than 40 characters"): read_ecg(written(tmp_path, "a.csv", long))


def test_a_number_of_channels_is_no_list_of_leads(tmp_path, x):
    file = written(tmp_path, "a.npz", npz(ecg=x, fs=500, unit="mV", channels=12))
    np.testing.assert_allclose(read_ecg(file).signal, x, atol=1e-6)


def test_a_dicom_ecg_of_big_endian(tmp_path, x):
    little = pydicom.dcmread(io.BytesIO(dicom_ecg(x)))
    right = read_ecg(written(tmp_path, "a.dcm", dicom_ecg(x))).signal

    def as_file(name, little_endian, **tags):
        ds = pydicom.Dataset.from_json(little.to_json())
        ds.file_meta = little.file_meta
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian if little_endian else pydicom.uid.ExplicitVRBigEndian
        for key, value in tags.items(): setattr(ds.WaveformSequence[0], key, value)
        pydicom.dcmwrite(tmp_path / name, ds, implicit_vr=False, little_endian=little_endian)
        return tmp_path / name

    swapped = np.frombuffer(little.WaveformSequence[0].WaveformData, "<i2").astype(">i2").tobytes()
    np.testing.assert_allclose(read_ecg(as_file("b.dcm", False, WaveformData=swapped)).signal, right, atol=1e-6)
    telephone = as_file("c.dcm", True, WaveformSampleInterpretation="MB", WaveformBitsAllocated=8)
    with pytest.raises(PtaclError, match="the samples of waveform 1 are compressed"): read_ecg(telephone)


# NumPy

def test_numpy(tmp_path, x):
    for array in (x, x.T, x[None], x.astype(np.float32)):
        ecg = read_ecg(written(tmp_path, "a.npy", npy(array)), **FACTS)
        np.testing.assert_allclose(ecg.signal, x, atol=1e-6)
        assert ecg.fs == 500 and ecg.meta["leads_by"] == "Einthoven's law"
    counts = written(tmp_path, "u.npy", npy((1000 * x).astype(np.int16)), {"fs": 400, "unit": "uV"})
    np.testing.assert_allclose(read_ecg(counts).signal, x, atol=2e-3)
    many = np.stack([x, 2 * x, 3 * x])
    written(tmp_path, "m.npy", npy(many))
    with pytest.raises(PtaclError, match="holds 3 recordings. Say which one is meant: record=0 to 2"): read_ecg(tmp_path / "m.npy", **FACTS)
    for k in range(3): np.testing.assert_allclose(read_ecg(tmp_path / "m.npy", record=k, **FACTS).signal, (k + 1) * x, atol=1e-6)
    with pytest.raises(PtaclError, match="no recording 3"): read_ecg(tmp_path / "m.npy", record=3, **FACTS)


def test_what_an_npz_holds_beside_the_array(tmp_path, x):
    order = [*range(6, 12), *range(6)]
    named = npz(ecg=1000 * x[order], fs=250, units="uVolt", lead_names=[f"ECG {LEADS[k]}" for k in order])
    ecg = read_ecg(written(tmp_path, "a.npz", named), unit="mV", fs=500)  # the file's own word counts
    np.testing.assert_allclose(ecg.signal, x, atol=1e-6)
    assert ecg.fs == 250 and ecg.meta["leads_by"] == "name"
    with pytest.raises(PtaclError, match="2 arrays of it have an axis of twelve"): read_ecg(written(tmp_path, "b.npz", npz(a=x, b=x)), **FACTS)


def test_the_order_of_mimic_is_found(tmp_path, x):
    file = tmp_path / "a.npy"
    np.save(file, x[[0, 1, 2, 3, 5, 4, *range(6, 12)]])
    ecg = read_ecg(file, **FACTS)
    np.testing.assert_allclose(ecg.signal, x, atol=1e-6)
    assert ecg.meta["leads_by"] == "Einthoven's law"


@pytest.mark.parametrize("array, facts, why", [
    (lambda x: x, {"unit": "mV"}, "does not say its sampling rate. Say it in a file"),
    (lambda x: x, {"fs": 500}, "does not say its unit of voltage"),
    (lambda x: x, {"fs": 500, "unit": "furlong"}, "unknown unit of voltage: expected mV"),
    (lambda x: x[::-1], FACTS, "not in the usual order"),
    (lambda x: x[[1, 0, *range(2, 12)]], FACTS, "not in the usual order"),
    (lambda x: x[[0, 1, 2, 4, 3, 5, *range(6, 12)]], FACTS, "not in the usual order"),
    (lambda x: x[:11], FACTS, "which axis holds the 12 leads"),
    (lambda x: x[:, :12], FACTS, "which axis holds the 12 leads"),
    (lambda x: x[0], FACTS, r"an array of 1000 float64, expected numbers of \(12, N\)"),
    (lambda x: x.astype(str), FACTS, "expected numbers"),
    (lambda x: np.zeros((12, 1000), [("SMITH^JOHN", "<f4")]), FACTS, "an array of 12×1000 void32, expected numbers"),
    (lambda x: 5000 * x, FACTS, "unit or gain"),
    (lambda x: np.full_like(x, np.nan), FACTS | {"leads": LEADS}, "samples are missing"),
])
def test_arrays_refused(tmp_path, x, array, facts, why):
    with pytest.raises(PtaclError, match=why) as e: read_ecg(written(tmp_path, f"{ID}.npy", npy(array(x))), **facts)
    assert ID not in str(e.value)


def test_objects_are_never_unpickled(tmp_path):
    with pytest.raises(PtaclError): read_ecg(written(tmp_path, "a.npy", npy(np.array([{"a": 1}], object))), **FACTS)


def test_a_json_that_is_none(tmp_path, x):
    written(tmp_path, "a.npy", npy(x))
    for text in ("{", "[1]"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(PtaclError, match="a.json beside it is no JSON"): read_ecg(tmp_path / "a.npy")


@pytest.mark.parametrize("told, why", [
    ({"fs": "500 Hz", "unit": "mV"}, "the rate .* is no number. Give it in Hz, without the unit"),
    ({"fs": [500], "unit": "mV"}, "the rate .* is no number"),
    ({"fs": 500, "unit": "mV", "leads": "I, II"}, "no list of names. Give them as a list"),
    ({"fs": 500, "unit": "mV", "leads": 12}, "no list of names"),
])
def test_a_json_that_tells_a_rate_or_leads_in_another_form(tmp_path, x, told, why):
    written(tmp_path, "a.npy", npy(x))
    (tmp_path / "a.json").write_text(json.dumps(told))
    with pytest.raises(PtaclError, match=why): read_ecg(tmp_path / "a.npy")


# MATLAB

def test_matlab(tmp_path, x):
    ecg = read_ecg(written(tmp_path, "A0001.mat", mat(ECG={"sex": "Male", "age": 60, "data": x})))
    np.testing.assert_allclose(ecg.signal, x, atol=1e-6)
    assert ecg.fs == 500 and "CPSC" in ecg.meta["format"]
    np.testing.assert_allclose(read_ecg(written(tmp_path, "b.mat", mat(val=x, fs=500, unit="mV"))).signal, x, atol=1e-6)
    with pytest.raises(PtaclError, match="does not say its sampling rate"): read_ecg(written(tmp_path, "c.mat", mat(val=x)))


def test_a_matlab_bomb(tmp_path):
    bomb = mat(val=np.zeros((12, 3_000_000)))
    assert len(bomb) < 2**20
    with pytest.raises(PtaclError, match="unpacks to more than 200 MB"): read_ecg(written(tmp_path, "b.mat", bomb), **FACTS)


# CSV

@pytest.mark.parametrize("options", [
    dict(), dict(separator=";", decimal=","), dict(separator="\t"), dict(time="time (ms)", step=2), dict(time="Time", step=2), dict(time="t"),
    dict(names=[f"EKG_{n}" for n in LEADS]), dict(names=[f"MDC_ECG_LEAD_{n.upper()}" for n in LEADS]),
    dict(names=[*LEADS[:6], *(f"C{k}" for k in range(1, 7))]), dict(unit=" [mV]")])
def test_csv(tmp_path, x, options):
    ecg = read_ecg(written(tmp_path, "a.csv", csv(x, **options)))
    np.testing.assert_allclose(ecg.signal, x, atol=2e-5)
    assert ecg.fs == pytest.approx(500)


def test_microvolts_of_a_spreadsheet(tmp_path, x):
    text = csv(1000 * x, unit=" [µV]").decode()
    for encoding in ("utf-8", "utf-8-sig", "cp1252", "utf-16"):
        ecg = read_ecg(written(tmp_path, "a.csv", text.encode(encoding)))
        np.testing.assert_allclose(ecg.signal, x, atol=2e-5)


def test_csv_without_a_word_about_itself(tmp_path, x):
    bare = written(tmp_path, "a.csv", csv(x, names=None, time=None))
    np.testing.assert_allclose(read_ecg(bare, **FACTS).signal, x, atol=2e-5)
    with pytest.raises(PtaclError, match="does not say its sampling rate"): read_ecg(bare)
    with pytest.raises(PtaclError, match="tell no unit of voltage"): read_ecg(written(tmp_path, "b.csv", csv(x, unit="")))
    with pytest.raises(PtaclError, match="tell no sampling rate"): read_ecg(written(tmp_path, "b.csv", csv(x, time=None)))


@pytest.mark.parametrize("damage, why", [
    (lambda t: t.replace(b"\n0.01,", b"\n0.01,x", 1), "line 7, column 2: no number"),
    (lambda t: t.replace(b"\n0.01,", b"\n0.01,1,", 1), "line 7 has 14 columns, and the first 13"),
    (lambda t: t.replace(b"\n0.01,", b"\n0.5,", 1), "uneven steps"),
    (lambda t: t.replace(b"V6 (mV)", b"V7 (mV)", 1), "lead V6 missing"),
])
def test_csv_refused(tmp_path, x, damage, why):
    with pytest.raises(PtaclError, match=why): read_ecg(written(tmp_path, "a.csv", damage(csv(x))))


# HL7 aECG

@pytest.mark.parametrize("options", [dict(), dict(unit="mV", scale=0.005), dict(unit="nV", scale=5000), dict(step=("2", "ms")), dict(names="{}")])
def test_aecg(tmp_path, x, options):
    ecg = read_ecg(written(tmp_path, f"{ID}.xml", aecg(x, **options)))
    np.testing.assert_allclose(ecg.signal, x, atol=2.6e-3)
    assert ecg.fs == pytest.approx(500) and ecg.meta["resolution_uv"] == pytest.approx(5) and ID not in repr(ecg.meta)


def test_an_origin_is_added(tmp_path, x):
    np.testing.assert_allclose(read_ecg(written(tmp_path, "a.xml", aecg(x, origin=100))).signal, x + .1, atol=2.6e-3)


@pytest.mark.parametrize("options, why", [(dict(unit="mmHg"), "unknown unit of voltage 'mmHg'"), (dict(step=("2", "h")), "no number of s or ms"),
                                          (dict(names="MDC_PULS_{}"), "no series with a lead"), (dict(kind="derivation"), "no series with a lead"),
                                          (dict(scale="x"), "no scale with a number")])
def test_aecg_refused(tmp_path, x, options, why):
    with pytest.raises(PtaclError, match=why): read_ecg(written(tmp_path, "a.xml", aecg(x, **options)))


# files of carts, with the extra

@pytest.fixture
def carts(): return pytest.importorskip("ecgdatakit", reason="the extra formats is not installed")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("write, form, step", [(sierra, "Philips Sierra XML", 5), (scp, "SCP-ECG", 2.5)])
def test_packed_or_not_the_same_numbers(tmp_path, x, carts, write, form, step, packed):
    x = x + 0.3 * np.sin(np.arange(1000) / 9)[None] * np.array([1, 1, 0, -1, .5, .5] + 6 * [1])[:, None]  # slow and steep parts
    ecg = read_ecg(written(tmp_path, f"{ID}.ecg", write(x, packed=packed)))
    np.testing.assert_allclose(ecg.signal, x, atol=0.0005 * step + 1e-6)
    assert (ecg.fs, ecg.meta["format"], ecg.meta["resolution_uv"]) == (500, form, step) and ID not in repr(ecg.meta)


def test_mortara(tmp_path, x, carts):
    ecg = read_ecg(written(tmp_path, "a.xml", eli(x, per_mv=400, fs=1000)))
    np.testing.assert_allclose(ecg.signal, x, atol=0.00126)
    assert (ecg.fs, ecg.meta["format"]) == (1000, "Mortara ELI XML") and "Smith" not in repr(ecg.meta)


def test_eight_leads_of_an_scp(tmp_path, x, carts):
    kept = [0, 1, *range(6, 12)]
    ecg = read_ecg(written(tmp_path, "a.scp", scp(x[kept], names=[LEADS[k] for k in kept])))
    np.testing.assert_allclose(ecg.signal[kept], x[kept], atol=0.00126)
    assert ecg.meta["derived_leads"] == ("III", "aVR", "aVL", "aVF")


@pytest.mark.parametrize("data, why", [
    (lambda x: sierra(x, version="9.9"), "Philips Sierra XML: Files of type SierraECG 9.9 are unsupported. Export it again, or as HL7 aECG"),
    (lambda x: sierra(x, resolution=False), "does not say what a count is worth"), (lambda x: sierra(50 * x), "its unit or gain is wrong"),
    (lambda x: eli(x, per_mv=0), "does not say what a count is worth"), (lambda x: eli(x, OFFSET=5), "an offset"),
    (lambda x: eli(x[:11], names=LEADS[:11]), "lead V6 missing"), (lambda x: scp(x, multiplier=0), "does not say what a count is worth"),
    (lambda x: scp(x, first=41), "begin at different times"), (lambda x: scp(x)[:-400], "declares .* bytes but the file has"),
    (lambda x: sierra(x).replace(b"XLI", b"ZIP"), "Compression unsupported"), (lambda x: b"<ECG/>", "cannot be read as Mortara ELI XML")])
def test_files_of_carts_refused(tmp_path, x, carts, data, why):
    with pytest.raises(PtaclError, match=why) as e: read_ecg(written(tmp_path, f"{ID}.xml", data(x)))
    assert ID not in str(e.value) and str(tmp_path) not in str(e.value)


def test_the_libraries_agree_on_a_packed_sierra(tmp_path, x, carts):
    other = pytest.importorskip("sierraecg", reason="a second opinion that is not installed")
    file = written(tmp_path, "a.xml", sierra(x))
    theirs = np.stack([lead.samples for lead in other.read_file(str(file)).leads])
    np.testing.assert_array_equal(theirs, np.rint(1000 * read_ecg(file).signal / 5))


# HDF5 and EDF, with the extra

def hdf5(tmp_path, array, name="tracings", attributes=None, **more):
    h5py = pytest.importorskip("h5py", reason="the extra formats is not installed")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        data = file.create_dataset(name, data=array, compression="gzip")
        for key, value in (attributes or {}).items(): data.attrs[key] = value
        for key, value in more.items(): file[key] = value
    return tmp_path / "a.hdf5"


def test_hdf5(tmp_path, x):
    many = np.stack([x.T, 2 * x.T])  # as CODE-15 % has it: (n, N, 12)
    file = hdf5(tmp_path, many, exam_id=np.arange(2))
    np.testing.assert_allclose(read_ecg(file, record=1, fs=400, unit="mV").signal, 2 * x, atol=1e-5)
    with pytest.raises(PtaclError, match="record=0 to 1"): read_ecg(file, **FACTS)
    file = hdf5(tmp_path, 1000 * x[::-1], attributes={"sampling_rate": 250, "units": "microvolt", "leads": list(LEADS[::-1])})
    ecg = read_ecg(file)
    np.testing.assert_allclose(ecg.signal, x, atol=1e-5)
    assert ecg.fs == 250
    with pytest.raises(PtaclError, match="2 arrays of it"): read_ecg(hdf5(tmp_path, x, b=x), **FACTS)
    with pytest.raises(PtaclError, match="does not say"): read_ecg(hdf5(tmp_path, x))


def test_edf(tmp_path, x):
    pyedflib = pytest.importorskip("pyedflib", reason="the extra formats is not installed")
    file = str(tmp_path / "a.edf")
    def write(rates, labels=tuple(f"ECG {n}" for n in LEADS), unit="uV"):
        with pyedflib.EdfWriter(file, 12) as f:
            f.setSignalHeaders([dict(label=n, dimension=unit, sample_frequency=fs, physical_max=5000, physical_min=-5000, digital_max=32767,
                                     digital_min=-32768, transducer="", prefilter="") for n, fs in zip(labels, rates)])
            f.writeSamples([1000 * v[:2 * fs] for v, fs in zip(x, rates)])
        return file
    ecg = read_ecg(write([500] * 12))
    np.testing.assert_allclose(ecg.signal, x, atol=2e-4)
    assert ecg.fs == 500
    with pytest.raises(PtaclError, match="different sampling rates"): read_ecg(write([500] * 11 + [250]))
    with pytest.raises(PtaclError, match="unknown unit of voltage 'mmHg'"): read_ecg(write([500] * 12, unit="mmHg"))


CARTS = {"sierra.xml": sierra, "eli.xml": eli, "a.scp": scp, "plain.scp": lambda x: scp(x, packed=False), "a.hdf5": hdf5_bytes,
         "plain.hdf5": lambda x: hdf5_bytes(x, chunked=False), "a.edf": edf}
NEEDS = {"hdf5": "h5py", "edf": "pyedflib"}


@pytest.mark.parametrize("name", CARTS)
def test_a_file_of_the_extra_cut_short_or_turned(tmp_path, x, name):
    "Cut anywhere, and with one bit of its head turned: a value or a sentence, in a process of its own, which must live."
    library = NEEDS.get(name.rpartition(".")[2], "ecgdatakit")
    pytest.importorskip(library, reason="the extra formats is not installed")
    data = CARTS[name](x)
    rng = np.random.default_rng(0)
    damaged = [data[:k] for k in sorted({1, 8, 40, 132, 256, *rng.integers(1, len(data), 12)})]
    for at in rng.integers(0, min(len(data), 4000), 60):
        damaged.append(data[:at] + bytes([data[at] ^ 1 << rng.integers(8)]) + data[at + 1:])
    damaged += [data + bytes(100), bytes(len(data)), data[:600] + bytes(200) + data[800:]]
    for k, one in enumerate(damaged): (tmp_path / f"{k}.{name.rpartition('.')[2]}").write_bytes(one)
    code = ("import sys\nfrom pathlib import Path\nfrom ptacl.core.errors import PtaclError\nfrom ptacl.data.ecg_files import read_ecg\n"
            "for f in sorted(Path(sys.argv[1]).iterdir()):\n"
            "    try: ecg = read_ecg(f, fs=500, unit='mV'); print('value', ecg.signal.shape[0], file=sys.stderr)\n"
            "    except PtaclError as e: print('refused', len(str(e)) > 20, file=sys.stderr)\n")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    said = [line for line in run.stderr.splitlines() if line.startswith(("value", "refused"))]  # EDF's library prints, too
    assert len(said) == len(damaged) and set(said) <= {"value 12", "refused True"} and said.count("refused True") > 10


MADE = {"CardiologyXML": ("a.xml", strip), "MUSE XML": ("a.xml", muse), "HL7 aECG": ("a.xml", aecg), "DICOM": ("a.dcm", dicom_ecg),
        "Philips Sierra XML": ("a.xml", sierra), "Mortara ELI XML": ("a.xml", eli), "SCP-ECG": ("a.scp", scp), "NumPy": ("a.npy", npy),
        "HDF5": ("a.h5", hdf5_bytes), "MATLAB": ("a.mat", lambda x: mat(val=x)), "CSV": ("a.csv", csv), "EDF": ("a.edf", edf),
        "MATLAB (CPSC 2018)": ("a.mat", lambda x: mat(ECG={"sex": "F", "age": 50, "data": x}))}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_of_the_list_is_read(tmp_path, x, form):
    pytest.importorskip(FORMATS[form], reason="the extra formats is not installed")
    if form == "WFDB": path = record(tmp_path, LEADS, x)
    else: path = written(tmp_path, MADE[form][0], MADE[form][1](x))
    ecg = read_ecg(path, **FACTS)
    assert ecg.meta["format"] == form
    np.testing.assert_allclose(ecg.signal, x, atol=0.006)


def test_the_table_of_formats_is_the_list_of_formats():
    "In the book: a row for each format with its library, and something in every cell."
    text = (Path(__file__).parents[1] / "nbs" / "31_ecg_files.ipynb").read_text(encoding="utf-8")
    cells = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
    table = next(c for c in cells if "| format | library |" in c)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")][2:]
    assert all(len(row) == 4 and all(row) for row in rows)
    assert {form: library.split("`")[1] for form, library, *_ in rows} == FORMATS
    extra = {form for form, library, *_ in rows if "(`formats`)" in library}
    needed = (Path(__file__).parents[1] / "settings.ini").read_text(encoding="utf-8").lower()
    needed = next(line for line in needed.splitlines() if line.startswith("formats_requirements"))
    assert extra == {form for form, library in FORMATS.items() if library in needed}


def test_the_extra_is_named_where_it_lacks(tmp_path, monkeypatch):
    from ptacl.data import recordings
    def missing(name): raise ImportError(name)
    monkeypatch.setattr(recordings, "import_module", missing)
    for start in (b"\x89HDF\r\n\x1a\n" + bytes(200), b"0       " + bytes(300), bytes(16) + b"SCPECG" + bytes(200), b"<ECG/>"):
        with pytest.raises(PtaclError, match=r"not installed. pip install 'ptacl\[formats\]'"): read_ecg(written(tmp_path, "a.bin", start))

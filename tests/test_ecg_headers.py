"""WFDB headers and XML files as they occur: read, or refused with the field, line or lead that is wrong."""
import re
import shutil

import numpy as np
import pytest
import wfdb
from makers import ID, muse, record, strip, voltages

from ptacl.core.errors import PtaclError
from ptacl.core.presets import LEADS
from ptacl.data.ecg_arrays import obeys_einthoven
from ptacl.data.ecg_files import read_ecg
from ptacl.data.prepare import prepare_ecg
from ptacl.data.standard_leads import lead_name, make_ecg, to_millivolt
from ptacl.inference.screening import screen
from ptacl.simulate.patients import simulate


@pytest.fixture
def x(): return voltages(6000)


def edited(header, first=None, line=None):
    "A header with another first line, and each signal line changed."
    lines = header.read_text().splitlines()
    lines[0] = first or lines[0]
    if line: lines[1:] = [line(text) for text in lines[1:]]
    header.write_text("\n".join(lines) + "\n")
    return header


# names, dates, lengths

@pytest.mark.parametrize("first", [
    "beats/rec 12 500 6000", "rec.part.1 12 500 6000", "rec 12 500/500(0) 6000", "rec 12 500 6000 10:15:00 01.02.1998",
    "rec 12 500 6000 10:15:00 1/2/98", "rec 12 500 6000 10.15 1998-02-01", "rec 12 500", "rec 12 500 0", "rec 12 5e2 6000"])
def test_first_lines(tmp_path, x, first):
    header = edited(record(tmp_path, LEADS, x), first)
    before = sorted(f.name for f in tmp_path.iterdir())
    ecg = read_ecg(header)
    np.testing.assert_allclose(ecg.signal, x, atol=2e-3)
    assert ecg.fs == 500 and sorted(f.name for f in tmp_path.iterdir()) == before


def test_folders_and_odd_names_of_files(tmp_path, x):
    header = record(tmp_path, LEADS, x)
    (tmp_path / "beats").mkdir()
    for name in ("beats/rec.dat", "a.b.dat", "röhre.dat"):
        shutil.copy(tmp_path / "rec.dat", tmp_path / name)
        lines = header.read_text().replace("rec.dat", name)
        (tmp_path / "other.hea").write_text(lines, encoding="utf-8")
        np.testing.assert_allclose(read_ecg(tmp_path / "other.hea").signal, x, atol=2e-3)
    (tmp_path / "gone.hea").write_text(header.read_text().replace("rec.dat", "beats/none.dat"))
    with pytest.raises(PtaclError, match="signal file 1 of its header is missing"): read_ecg(tmp_path / "gone.hea")
    for name in ("../rec.dat", str(tmp_path / "rec.dat"), "..\\rec.dat"):
        (tmp_path / "beats" / "out.hea").write_text(header.read_text().replace("rec.dat", name))
        with pytest.raises(PtaclError, match="outside its own folder") as e: read_ecg(tmp_path / "beats" / "out.hea")
        assert str(tmp_path) not in str(e.value)


def test_names_in_large_and_small_letters(tmp_path, x):
    "As after a copy through Windows, or through a zip that was made there."
    header = record(tmp_path, LEADS, x)
    header.rename(tmp_path / "REC.HEA")
    (tmp_path / "rec.dat").rename(tmp_path / "Rec.DAT")
    for name in ("REC.HEA", "rec.hea", "rec", "Rec.DAT"):
        np.testing.assert_allclose(read_ecg(tmp_path / name).signal, x, atol=2e-4)


def verdict_of(x, tmp_path):
    (tmp_path / "x.xml").write_bytes(strip(x))
    return prepare_ecg(tmp_path / "x.xml")[2]


def test_limb_leads_that_contradict_each_other(x, tmp_path):
    "What a shift of bytes, a gain of its own or exchanged names make of them is seen, whoever names the leads."
    assert verdict_of(x, tmp_path) == "good"
    for wrong in (np.roll(x, 1, axis=0), x * np.where(np.arange(12) == 2, -1, 1)[:, None], x[[1, 0, *range(2, 12)]]):
        assert verdict_of(wrong, tmp_path).startswith("contradictory: limb leads")
    filtered = x + 0.02 * np.random.default_rng(0).normal(size=x.shape)  # in each lead for itself
    assert verdict_of(filtered, tmp_path) == "good"


def test_another_fault_hides_no_contradiction_and_drift_is_none(tmp_path):
    x = simulate(1, 3, cine=False).ecg[0].numpy()
    drift = 0.05 * np.sin(2 * np.pi * (0.2 * np.arange(5000) / 500 + np.random.default_rng(0).random((12, 1))))
    assert not obeys_einthoven(0.5 * x + drift, 0.25) and verdict_of(0.5 * x + drift, tmp_path) == "good"
    x[11, 2000:] = 0.1  # V6
    assert verdict_of(x, tmp_path) == "flat: V6"
    assert verdict_of(x[[1, 0, *range(2, 12)]], tmp_path).startswith("flat: V6; contradictory: limb leads")
    with pytest.raises(PtaclError, match="contradictory"): screen(tmp_path / "x.xml", allow=["flat"])
    x[5] = x[11]        # aVF, too: a flat limb lead contradicts the others, which says nothing more
    assert verdict_of(x, tmp_path) == "flat: aVF, V6"


def test_a_signal_file_without_its_header(tmp_path, x):
    header = record(tmp_path, LEADS, x)
    (tmp_path / "lone.dat").write_bytes(header.with_suffix(".dat").read_bytes())
    with pytest.raises(PtaclError, match="there is no lone.hea"): read_ecg(tmp_path / "lone.dat")
    with pytest.raises(PtaclError, match="signal file 1 of its header"): read_ecg(edited(header, line=lambda text: text.replace("rec.dat", "rec")))


def test_six_minutes_without_a_length(tmp_path):
    long = np.tile(voltages(6000), 30)
    header = edited(record(tmp_path, LEADS, long), "rec 12 500")
    assert read_ecg(header).signal.shape == (12, 180_000)


@pytest.mark.parametrize("line, why", [
    (lambda text: text.replace(" 16 ", " x ", 1), "the format of signal 1"),
    (lambda text: text.replace(" 16 ", " 16x99 ", 1), "99 samples in a frame"),
    (lambda text: text.replace("/mV", "/mmHg", 1), "unknown unit of voltage 'mmHg'"),
    (lambda text: text.rpartition(" ")[0] + " resp", "none of its signals is a lead of a 12-lead ECG, by the names of all 12"),
    (lambda text: " ".join(text.split()[:2]), "signal 1 has no gain"),
])
def test_what_is_wrong_is_named(tmp_path, x, line, why):
    with pytest.raises(PtaclError, match=why) as e: read_ecg(edited(record(tmp_path, LEADS, x, name=f"r{ID}"), line=line))
    assert "fetch it again" not in str(e.value).lower() and ID not in str(e.value)


def test_first_lines_that_are_wrong(tmp_path, x):
    for first, why in (("rec 11 500 6000", "12 lines of signals, and its first line says 11"), ("rec twelve 500 6000", "number of signals"),
                       ("rec ² 500 6000", "number of signals"), (f"rec {'9' * 5000} 500 6000", "number of signals"),
                       ("rec 12 500 ²", "the length in"), (f"rec 12 500 {'6' * 5000}", "the length in"),
                       ("rec 12 fast 6000", "sampling rate"), ("rec 12 500 9000", "promises 9000 samples .* room for 6000: it is cut short")):
        with pytest.raises(PtaclError, match=why): read_ecg(edited(record(tmp_path, LEADS, x), first))


# checksums

WRONG = "12 of 12 signals do not have the checksum that the header gives: they are damaged, or of another record"


def test_signals_of_another_record_are_refused(tmp_path, x):
    header = record(tmp_path, LEADS, x, name="a")
    other = record(tmp_path, LEADS, voltages(6000, 1), name="b").with_suffix(".dat")
    header.with_suffix(".dat").write_bytes(other.read_bytes())
    for first in (None, "a 12 500", "odd.name 12 500 6000"):  # as the library takes it, and written anew
        with pytest.raises(PtaclError, match=WRONG): read_ecg(edited(header, first))
    (tmp_path / "m.hea").write_text("m/1 12 500 6000\na 6000\n")
    with pytest.raises(PtaclError, match=WRONG): read_ecg(tmp_path / "m.hea")
    read_ecg(edited(header, line=lambda text: " ".join([*text.split()[:6], "0", *text.split()[7:]])))  # nobody has counted
    read_ecg(edited(header, line=lambda text: " ".join(text.split()[:5] + [text.split()[8]])))


def test_one_wrong_byte_is_seen(tmp_path, x):
    header = record(tmp_path, LEADS, x)
    data = bytearray(header.with_suffix(".dat").read_bytes())
    data[2 * 12 * 3000 + 2] ^= 16  # of lead II
    header.with_suffix(".dat").write_bytes(data)
    with pytest.raises(PtaclError, match="1 of 12 signals do not have the checksum"): read_ecg(header)


@pytest.mark.parametrize("form", ["16", "24", "32", "80", "212", "508", "516", "524"])
def test_right_checksums_in_every_format(tmp_path, x, form):
    gain = 20. if form in ("80", "508") else 200.
    counts = np.rint(gain * x).astype(int).T
    wfdb.wrsamp("rec", 500, ["mV"] * 12, list(LEADS), d_signal=counts, fmt=[form] * 12, adc_gain=[gain] * 12, baseline=[0] * 12,
                write_dir=str(tmp_path))
    header = tmp_path / "rec.hea"
    assert any(line.split()[6] != "0" for line in header.read_text().splitlines()[1:])
    np.testing.assert_allclose(read_ecg(header).signal, counts.T / gain, atol=1e-5)


def test_a_signal_with_a_delay_is_not_counted(tmp_path, x):
    header = record(tmp_path, LEADS, x)
    read_ecg(edited(header, line=lambda text: text.replace(" 16 ", " 16:3 ", 1)))


# segments and frames

def test_segments_in_a_row(tmp_path, x):
    record(tmp_path, LEADS, x[:, :2500], name="a")
    joined = tmp_path / "m.hea"
    joined.write_text("m/2 12 500 6000\na 2500\nb 3500\n")
    record(tmp_path, LEADS, 1000 * x[:, 2500:], "uV", name="b")
    np.testing.assert_allclose(read_ecg(joined).signal, x, atol=2e-3)
    first = "m/2 12 500 6000\n"
    for text, why in (("a 2500\n", "names 1 segments, and its first line says 2"), ("a 0\nb 2500\n", "channels vary"),
                      ("a 2500\n~ 3500\n", "a gap between"), ("a 2500\nb 100\n", "has 3500 samples, and its header says 100"),
                      ("a 2500\nnone 3500\n", "segment 2 of its header is missing")):
        joined.write_text(first + text)
        with pytest.raises(PtaclError, match=why): read_ecg(joined)
    record(tmp_path, LEADS[::-1], x[::-1, 2500:], name="b")
    joined.write_text("m/2 12 500 6000\na 2500\nb 3500\n")
    with pytest.raises(PtaclError, match="segments differ in leads"): read_ecg(joined)


def test_several_samples_in_a_frame(tmp_path, x):
    def write(names, per_frame):
        samples = [x[k].reshape(-1, 2)[:, :n].ravel() for k, n in enumerate(per_frame)]
        wfdb.wrsamp("rec", fs=250, units=["mV"] * 12, sig_name=list(names), e_p_signal=samples,
                    samps_per_frame=list(per_frame), fmt=["16"] * 12, adc_gain=[1000.] * 12, baseline=[0] * 12, write_dir=str(tmp_path))
        return read_ecg(tmp_path / "rec.hea")
    ecg = write(LEADS, [2] * 12)
    assert ecg.fs == 500
    np.testing.assert_allclose(ecg.signal, x, atol=2e-3)
    ecg = write(LEADS, [2] * 6 + [1] * 6)
    assert ecg.fs == 250 and ecg.signal.shape == (12, 3000)
    np.testing.assert_allclose(ecg.signal[0], x[0].reshape(-1, 2).mean(1), atol=2e-3)


# XML

@pytest.mark.parametrize("maker", [strip, muse])
@pytest.mark.parametrize("comment", [b"sinus\x0brhythm", b"A & B", "Knötchen".encode("latin-1"), b"\x00"])
def test_characters_in_a_comment(tmp_path, x, maker, comment):
    content = maker(x[:, :600]).replace(b"ISO-8859-1", b"utf-8").replace(b"\xe4", b"ae")
    root = b"<CardiologyXML>" if maker is strip else b"<RestingECG>"
    file = tmp_path / f"{ID}.xml"
    file.write_bytes(b"\n " + content.replace(root, root + b"<Note>" + comment + b"</Note>"))
    np.testing.assert_allclose(read_ecg(file).signal, x[:, :600], atol=0.01)


@pytest.mark.parametrize("encoding", ["utf-16", "unicode", "GB2312", "gb18030", "Shift_JIS", "EUC-KR", "Big5", "cp949"])
def test_an_encoding_that_is_wrong_or_rare(tmp_path, x, encoding):
    "As .NET writes it: utf-16 by name, utf-8 by bytes; and as Chinese, Japanese and Korean programs do."
    codec = "utf-8" if encoding in ("utf-16", "unicode") else encoding
    comment = f"<Comment>{'心' if codec != 'EUC-KR' and codec != 'cp949' else '심'}</Comment>".encode(codec)
    data = muse(x).replace(b"ISO-8859-1", encoding.encode()).replace(b"<PatientDemographics>", comment + b"<PatientDemographics>")
    (tmp_path / "x.xml").write_bytes(data)
    np.testing.assert_allclose(read_ecg(tmp_path / "x.xml").signal, x, atol=0.01)


@pytest.mark.parametrize("maker", [muse, strip])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "unicode", "gb2312", "ISO-8859-1", "cp999", "iso_8859-1:1987"])
def test_the_mark_of_utf_8_goes_before_what_is_declared(tmp_path, x, encoding, maker):
    data = maker(x[:, :5000]).decode("latin-1").replace("ISO-8859-1", encoding)
    for end in ("", "\r\n"):
        (tmp_path / "x.xml").write_text(data.replace("?>", "?>" + end), encoding="utf-8-sig")
        np.testing.assert_allclose(read_ecg(tmp_path / "x.xml").signal, x[:, :5000], atol=0.01)


@pytest.mark.parametrize("encoding", ["cp999", "gbx"])
def test_an_encoding_that_nobody_knows_is_named(tmp_path, x, encoding):
    (tmp_path / "x.xml").write_bytes(muse(x).replace(b"ISO-8859-1", encoding.encode()))
    with pytest.raises(PtaclError, match=f"names an encoding that nobody knows, {encoding}. Export"): read_ecg(tmp_path / "x.xml")


@pytest.mark.parametrize("maker, tag", [(strip, "ChannelSampleCountTotal"), (muse, "LeadSampleCountTotal"), (muse, "SampleExponent"),
                                        (muse, "LeadSampleSize"), (muse, "LeadTimeOffset")])
@pytest.mark.parametrize("value", ["²", "5" * 5000, "x"])
def test_a_whole_number_that_is_none(tmp_path, x, maker, tag, value):
    text = maker(x[:, :600]).decode("latin-1")
    assert tag in text
    text = re.sub(f"<{tag}>[^<]*<", f"<{tag}>{value}<", text)
    (tmp_path / "x.xml").write_text(text, encoding="latin-1")
    with pytest.raises(PtaclError, match=f"no whole number in its {tag}"): read_ecg(tmp_path / "x.xml")


def test_where_an_xml_is_wrong(tmp_path, x):
    file = tmp_path / "x.xml"
    file.write_bytes(strip(x[:, :600]).replace(b"<StripData>", b"\n<StripData>").replace(b"</StripData>", b"</Strip>"))
    with pytest.raises(PtaclError, match=r"wrong in line \d+, column \d+ \(mismatched tag\)"): read_ecg(file)
    file.write_bytes(strip(x[:, :600])[:-900])
    with pytest.raises(PtaclError, match=r"breaks off in line \d+: it is cut short. Fetch it again"): read_ecg(file)
    file.write_bytes(b'<!DOCTYPE b [<!ENTITY a "ha">]><CardiologyXML>&a;</CardiologyXML>')
    with pytest.raises(PtaclError, match="declares entities") as e: read_ecg(file)
    assert "fetch" not in str(e.value).lower()


# names, units, gains

@pytest.mark.parametrize("form", ["{}", "ECG {}", "EKG_{}", "ecg-{}", "MDC_ECG_LEAD_{}", "Lead {}", "lead_{}", "ECG Lead {}", "{} (Einthoven)"])
def test_names_of_leads(form):
    for lead in LEADS:
        for name in (lead, lead.upper(), lead.lower()): assert lead_name(form.format(name)) == lead
    assert [lead_name(form.format(n)) for n in ("C1", "C6", "V7", "V3R", "X", "IV")] == ["V1", "V6", None, None, None, None]


def test_names_of_derivations():
    "As in Spanish, Portuguese, French and Italian."
    for k, lead in enumerate(LEADS[:3], 1):
        for name in (f"D{lead}", f"D{k}", f"d{lead.lower()}", f"ECG D{lead}"): assert lead_name(name) == lead
    assert [lead_name(name) for name in ("D4", "DIV", "DaVR", "MLII", "-aVR")] == [None] * 5


@pytest.mark.parametrize("unit, mv", [("mVolt", 1), ("MILLIVOLT", 1), ("microvolt", 1e-3), ("uVolt", 1e-3), ("nV", 1e-6), (" Volts ", 1e3)])
def test_units(unit, mv): assert to_millivolt(unit) == mv


def test_a_unit_that_is_none_is_named_and_nothing_else():
    with pytest.raises(PtaclError, match="'mmHg'"): to_millivolt("mmHg")
    with pytest.raises(PtaclError) as e: to_millivolt("<b>\n" + "x" * 99)
    assert "<" not in str(e.value) and len(str(e.value)) < 120


@pytest.mark.parametrize("fs", [250, 500, 1000])
def test_a_gain_that_makes_an_impossible_qrs(fs):
    t = np.arange(10 * fs) / fs
    qrs = sum(np.exp(-.5 * ((t - k) / .012) ** 2) for k in np.arange(.5, 10, .8))
    wander = 2 * np.sin(2 * np.pi * .3 * t)
    for size, good in ((0.001, False), (0.01, False), (0.1, True), (1.5, True), (4.5, True), (7.5, False), (15, False)):
        pairs = [(lead, size * qrs + min(size, 1) * wander) for lead in LEADS]
        if good: assert make_ecg(pairs, fs).signal.shape == (12, 10 * fs)
        else:
            with pytest.raises(PtaclError, match="a typical .* unit or gain is wrong"): make_ecg(pairs, fs)

"""Readers on damaged and on hostile files: each ends in a value or in a PtaclError, soon, and within its memory.

2,000 files with damaged bytes in the usual run, 20,000 with `-m long`.
"""
import functools
import gzip
import io
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import traceback
import zipfile
import zlib
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import (ID, acdc, aecg, csv, dicom_ecg, edf, eli, enhanced, hdf5, image, mat, moving, muse, new_dicom, nifti, npy, npz, packed,
                    record, saved, scan, scp, sierra, strip, ukb_zip, voltages)
from pydicom.uid import RLELossless

from ptacl.core.errors import PtaclError
from ptacl.core.presets import LEADS
from ptacl.data.dicom import read_cine
from ptacl.data.ecg_files import read_ecg
from ptacl.data.recordings import Cine, ECG

SECONDS, MEMORY = 20, 2**30  # of computing, with room for a slow machine; of the whole process


# the guard

class TooLong(BaseException):
    "Not an Exception, so that no reader can turn it into a PtaclError."


@functools.cache
def libraries():
    "Bytes that the readers' libraries occupy in a process of their own: this one may still hold what other tests left."
    code = "from pathlib import Path; import ptacl.data.ecg_files, ptacl.data.dicom; print(Path('/proc/self/statm').read_text().split()[1])"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) * resource.getpagesize()


@contextmanager
def guarded(seconds=SECONDS, memory=MEMORY):
    "Stops what computes longer (or waits six times as long), and denies memory above a total, the libraries included."
    def stop(*_): raise TooLong(f"more than {seconds} s")
    status = Path("/proc/self/statm")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    clocks = [(signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 6 * seconds)]
    before = [signal.signal(s, stop) for s, _, _ in clocks]
    if status.exists():
        claimed = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (claimed + memory - libraries(), hard))
    for _, clock, limit in clocks: signal.setitimer(clock, limit)
    try: yield
    finally:
        for (s, clock, _), handler in zip(clocks, before): signal.setitimer(clock, 0); signal.signal(s, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(reader, path, **limits):
    "What a reader makes of a path: a value, or None for a refusal. Fails on all else, and on a participant's number in a message."
    try:
        with guarded(**limits): value = reader(path)
    except PtaclError as e:
        assert "MemoryError" not in str(e), "ran out of memory"
        assert ID not in str(e) and str(path.parent) not in str(e)
        return None
    assert isinstance(value, ECG | Cine) and ID not in repr(value) + repr(value.meta)
    if isinstance(value, ECG): assert value.signal.shape[0] == 12 and value.signal.dtype == np.float32 and np.isfinite(value.signal).all()
    else: assert value.frames.ndim == 4 and value.frames.dtype == np.float32 and np.isfinite(value.frames).all()
    return value


def forever(path):
    while True: pass


def waiting(path): time.sleep(60)


def greedy(path):
    try: return bytearray(2**31)
    except Exception as e: raise PtaclError(f"cannot be read ({type(e).__name__})") from None


def leaky(path): raise PtaclError(f"{path.name} of {ID}")


def careless(path): raise KeyError(ID)


@pytest.mark.parametrize("reader, why", [(forever, TooLong), (waiting, TooLong), (greedy, AssertionError), (leaky, AssertionError),
                                         (careless, KeyError), (lambda path: None, AssertionError)])
def test_the_guard_catches(reader, why, tmp_path):
    with pytest.raises(why): outcome(reader, tmp_path / "x", seconds=0.2)
    with guarded(): np.ones(2**20)  # and lets go again


# damage to bytes

def rle(cine):
    "A multi-frame DICOM whose pixels are compressed."
    ds = pydicom.dcmread(io.BytesIO(enhanced(cine)))
    ds.compress(RLELossless)
    return saved(ds)


def write_folder(folder, files):
    folder.mkdir()
    for name, data in files: (folder / name).write_bytes(data)
    return folder


def make_seeds(tmp):
    "name -> (reader, what to read, files to damage)."
    x, cine = voltages(30), moving(3, 2, 4, 5)
    def file(name, data): (tmp / name).write_bytes(data); return tmp / name
    sax = scan(cine)
    labels = np.random.default_rng(0).integers(0, 4, (4, 2, 4, 5), dtype=np.uint8)
    header = record(tmp, LEADS, voltages(60))
    patient = acdc(tmp / "patient001", moving(4, 2, 4, 5), labels)
    plain = write_folder(tmp / "plain", [(f"{ID}.{k}", data) for k, (_, data) in enumerate(scan(cine, "cine sa"))])
    ukbb = write_folder(tmp / "ukbb", [("sa.nii", nifti(cine)), ("label_sa.nii", nifti(cine.astype(np.uint8) % 4))])
    alone = {"cardiology.xml": strip(x), "muse.xml": muse(x), "ecg.dcm": dicom_ecg(x)}
    stacks = {"ukb.zip": ukb_zip(sax), "stored.zip": packed([(f"{k}", d) for k, (_, d) in enumerate(sax)], zipfile.ZIP_STORED),
              "enhanced.dcm": enhanced(cine), "rle.dcm": rle(cine), "sa.nii": nifti(cine), "sa.nii.gz": gzip.compress(nifti(cine), 1)}
    seeds = {name: (read_ecg, f, [f]) for name, data in alone.items() for f in [file(name, data)]}
    arrays = {"a.npy": npy(x), "a.npz": npz(ecg=x, fs=500, unit="mV"), "a.csv": csv(x), "aecg.xml": aecg(x),
              "cpsc.mat": mat(ECG={"sex": "M", "age": 1, "data": x}), "plain.mat": mat(val=x, fs=500, unit="mV")}
    told = functools.partial(read_ecg, fs=500, unit="mV")
    if find_spec("ecgdatakit"): arrays |= {"sierra.xml": sierra(x), "eli.xml": eli(x), "a.scp": scp(x), "plain.scp": scp(x, packed=False)}
    if find_spec("h5py"): arrays |= {"a.hdf5": hdf5(x), "plain.hdf5": hdf5(x, chunked=False)}
    if find_spec("pyedflib"): arrays["a.edf"] = edf(voltages(60), fs=60)
    seeds |= {name: (told, f, [f]) for name, data in arrays.items() for f in [file(name, data)]}
    seeds |= {name: (read_cine, f, [f]) for name, data in stacks.items() for f in [file(name, data)]}
    seeds["record"] = (read_ecg, header, [header, header.with_suffix(".dat")])
    return seeds | {f.name: (read_cine, f, sorted(f.iterdir())) for f in (patient, plain, ukbb)}


ODD = [0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1]
WORDS = [b"0", b"-1", b"1", b"999999999999", b"1e400", b"nan", b"inf", b"", b"1.5", b"x", b"&a;", b"\xff\xfe", b"..", b"2147483648"]


def damaged(data, rng):
    "The bytes after one to four accidents."
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 600) + 1)  # headers come first
        n = min(rng.choice([1, 2, 4, 8, 50, 500]), len(data))
        match rng.randrange(9):
            case 0 | 1: data[i:i + 1] = bytes([rng.randrange(256)])
            case 2: data[i:i + 1] = bytes([data[i] ^ 1 << rng.randrange(8)]) if i < len(data) else b""
            case 3: data[i:i + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(ODD))
            case 4: data[i:i + 2] = struct.pack(rng.choice("<>") + "H", rng.choice(ODD) & 0xFFFF)
            case 5: del data[i:i + n]
            case 6: data[i:i] = data[i:i + n]
            case 7 if rng.random() < 0.3: del data[i:]
            case _:
                numbers = list(re.finditer(rb"[0-9.]+", data[i:i + 300]))
                if numbers: m = rng.choice(numbers); data[i + m.start():i + m.end()] = rng.choice(WORDS)
    return bytes(data)


def repacked(data, rng):
    "A zip of which one member is damaged and the archive around it is whole."
    with zipfile.ZipFile(io.BytesIO(data)) as archive: files = [(m.filename, archive.read(m)) for m in archive.infolist()]
    k = rng.randrange(len(files)) if rng.random() < 0.7 else len(files) - 1
    files[k] = (files[k][0], damaged(files[k][1], rng))
    return packed(files, zipfile.ZIP_STORED)


def damage(file, rng):
    "Damages a file, or what is packed in it."
    data = file.read_bytes()
    if file.suffix == ".zip" and rng.random() < 0.7: return repacked(data, rng)
    if file.suffix == ".gz" and rng.random() < 0.5: return gzip.compress(damaged(gzip.decompress(data), rng), 1)
    return damaged(data, rng)


def run(seeds, n, seed):
    "n damaged files, all formats in turn; counts of values and refusals by format."
    counts = {name: [0, 0] for name in seeds}
    for k in range(n):
        name, rng = list(seeds)[k % len(seeds)], random.Random(f"{seed} {k}")
        reader, path, files = seeds[name]
        file = rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(damage(file, rng))
        try: counts[name][outcome(reader, path) is None] += 1
        except BaseException as e:
            e.add_note(f"file {k} of seed {seed}: {name}, {file.name} damaged")
            raise
        finally: file.write_bytes(whole)
    return counts


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return make_seeds(tmp_path_factory.mktemp("seeds"))


def test_seeds_are_whole(seeds):
    for reader, path, _ in seeds.values(): assert outcome(reader, path) is not None, path.name


def test_damaged_bytes(seeds):
    counts = run(seeds, 2000, 0)
    assert all(refused for _, refused in counts.values()), counts  # the damage is felt in every format,
    assert sum(read for read, _ in counts.values()) > 200, counts  # and does not always end at the door


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
def test_damaged_bytes_long(seeds, seed):
    run(seeds, 4000, seed)


# damage to fields

LENGTHS = st.sampled_from([0, 1, 2, 3, 5, 100, 65535])
STRANGE = st.sampled_from(["", "1e999", "0x10", "١٢", "1,2", " 7 ", "5" * 5000])
NUMBERS = st.one_of(st.integers(-2**40, 2**40).map(str), st.floats().map(repr), STRANGE)
TEXTS = st.one_of(NUMBERS, st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="<&>"), max_size=30))


def tried(reader, tmp, name, data):
    (tmp / name).write_bytes(data)
    return outcome(reader, tmp / name)


@pytest.fixture(scope="module")
def tmp(tmp_path_factory): return tmp_path_factory.mktemp("fields")


@given(field=st.sampled_from(["SampleRate", "ChannelSampleCountTotal", "Resolution", "WaveformData"]), value=TEXTS)
def test_fields_of_cardiology_xml(tmp, field, value):
    text = strip(voltages(30)).decode("latin-1")
    text = re.sub(rf"(<{field}[^>]*>)[^<]*", lambda m: m[1] + value, text)
    tried(read_ecg, tmp, "x.xml", text.encode("iso-8859-1", "xmlcharrefreplace"))


@given(field=st.sampled_from(["WaveformType", "SampleBase", "SampleExponent", "LeadSampleCountTotal", "LeadAmplitudeUnitsPerBit",
                              "LeadAmplitudeUnits", "LeadID", "LeadSampleSize", "WaveFormData"]), value=TEXTS)
def test_fields_of_muse(tmp, field, value):
    text = re.sub(rf"(<{field}[^>]*>)[^<]*", lambda m: m[1] + value, muse(voltages(30)).decode("latin-1"))
    tried(read_ecg, tmp, "x.xml", text.encode("iso-8859-1", "xmlcharrefreplace"))


@given(line=st.integers(0, 12), column=st.integers(0, 8), value=TEXTS)
def test_fields_of_a_wfdb_header(tmp, line, column, value):
    header = record(tmp, LEADS, voltages(60))
    lines = [text.split(" ") for text in header.read_text().splitlines()]
    lines[line][min(column, len(lines[line]) - 1)] = value
    header.write_text("\n".join(map(" ".join, lines)), encoding="utf-8")
    outcome(read_ecg, header)


@given(field=st.sampled_from(["NumberOfWaveformChannels", "NumberOfWaveformSamples", "SamplingFrequency", "WaveformBitsAllocated"]),
       value=st.one_of(LENGTHS, st.integers(0, 2**16 - 1)))
def test_fields_of_a_dicom_ecg(tmp, field, value):
    ds = pydicom.dcmread(io.BytesIO(dicom_ecg(voltages(30))))
    ds.WaveformSequence[0][field].value = value
    tried(read_ecg, tmp, "x.dcm", saved(ds))


@given(field=st.sampled_from(["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
                              "NumberOfFrames", "CardiacNumberOfImages", "InstanceNumber", "TriggerTime", "SliceThickness"]),
       value=st.one_of(LENGTHS, st.integers(-2**15, 2**16 - 1)), whole=st.booleans())
def test_fields_of_an_image(tmp, field, value, whole):
    def change(data):
        ds = pydicom.dcmread(io.BytesIO(data))
        setattr(ds, field, abs(value) if field in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
                                                   "SamplesPerPixel") else value)
        return saved(ds)
    files = scan(moving(3, 2, 4, 5))
    tried(read_cine, tmp, "x.zip", ukb_zip([(s, change(d) if whole or k == 0 else d) for k, (s, d) in enumerate(files)]))


@given(field=st.sampled_from(["PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SeriesInstanceUID", "TriggerTime",
                              "CardiacNumberOfImages", "SliceLocation", "RescaleSlope", "PhotometricInterpretation", "SeriesDescription"]),
       values=st.lists(st.floats(-1e30, 1e30).map("{:.6g}".format) | st.sampled_from(["", "nan", "inf", "-0", "1e39", "x"]), max_size=7))
def test_texts_of_an_image(tmp, field, values):
    def change(data):
        ds = pydicom.dcmread(io.BytesIO(data))
        tag = pydicom.tag.Tag(field)
        ds[tag] = pydicom.DataElement(tag, "LO", values)  # written as text, read as whatever the element is
        return saved(ds).replace(struct.pack("<HH", tag.group, tag.element) + b"LO", struct.pack("<HH", tag.group, tag.element) +
                                 pydicom.datadict.dictionary_VR(tag).encode())
    tried(read_cine, tmp, "x.zip", ukb_zip([(s, change(d)) for s, d in scan(moving(3, 2, 4, 5), "cine")], manifest=None))


@given(text=st.one_of(st.text(max_size=200), st.lists(st.lists(TEXTS, max_size=6), max_size=5).map(
    lambda rows: "\n".join(["filename,date,series discription", *map(",".join, rows)]))))
def test_any_manifest(tmp, text):
    files = [(f"{k}.dcm", data) for k, (_, data) in enumerate(scan(moving(3, 2, 4, 5)))]
    tried(read_cine, tmp, "x.zip", packed([*files, ("manifest.csv", text.encode("utf-8", "replace"))]))


@given(field=st.sampled_from(["dim", "pixdim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "xyzt_units", "sizeof_hdr", "magic"]),
       index=st.integers(0, 4), value=st.sampled_from([0, -1, 1, 2, 7, 8, 64, 127, 255, 1792, 30_000, -32768]))
def test_fields_of_a_nifti(tmp, field, index, value):
    header = nib.Nifti1Header(nifti(moving(3, 2, 4, 5))[:348], check=False)
    array = header[field]
    if field == "magic": header["magic"] = str(value).encode()[:4]
    elif array.ndim: array[index] = value
    else: header[field] = np.array(value).astype(array.dtype)
    tried(read_cine, tmp, "x.nii", header.binaryblock + nifti(moving(3, 2, 4, 5))[348:])


@given(ed=TEXTS, es=TEXTS, frames=TEXTS)
def test_fields_of_an_info_cfg(tmp, ed, es, frames):
    folder = acdc(tmp / "patient001", moving(4, 2, 4, 5), np.zeros((4, 2, 4, 5), np.uint8))
    (folder / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nNbFrame: {frames}", encoding="utf-8")
    outcome(read_cine, folder)


# hostile files

def refusal(reader, path):
    "The message with which a path is refused, within time and memory."
    start = time.process_time()
    with pytest.raises(PtaclError) as e, guarded(): reader(path)
    assert time.process_time() - start < SECONDS and "MemoryError" not in str(e.value) and ID not in str(e.value)
    return str(e.value)


def test_xml_bombs(tmp_path):
    file = tmp_path / f"{ID}.xml"
    entities = "".join(f'<!ENTITY x{k} "{f"&x{k - 1};" * 10 if k else "ha"}">' for k in range(12))
    for root in ("CardiologyXML", "RestingECG"):
        file.write_text(f'<?xml version="1.0"?><!DOCTYPE b [{entities}]><{root}>&x11;</{root}>')
        assert "EntitiesForbidden" in refusal(read_ecg, file)
        file.write_text(f'<?xml version="1.0"?><!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/passwd">]><{root}>&x;</{root}>')
        assert "Forbidden" in refusal(read_ecg, file)
    for bomb in (b"<a>" * 3_000_000, b"<a>" + b"<b/>" * 3_000_000 + b"</a>", b"<a " + b"".join(b'k%d=""' % k for k in range(900_000)) + b"/>"):
        file.write_bytes(bomb)
        assert "more than 200,000 tags" in refusal(read_ecg, file)
    file.write_bytes(b"<a>" * 199_999)  # as deep as it may be
    assert "cut short" in refusal(read_ecg, file)
    with open(file, "wb") as f: f.write(b"<a>"); f.truncate(2**34)  # 16 GB, of which nothing lies on the disk
    assert "larger than 16 MB" in refusal(read_ecg, file)


def test_zip_that_points_outside(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    cine = moving()
    names = ["../{}", "../../{}", "/tmp/{}", "..\\{}", "C:\\{}", "a/../../../{}"]
    files = [(names[k % len(names)].format(f"evil{k}.dcm"), data) for k, (_, data) in enumerate(scan(cine))]
    (inside / "x.zip").write_bytes(packed(files))
    np.testing.assert_array_equal(outcome(read_cine, inside / "x.zip").frames, cine)
    assert [f.name for f in tmp_path.rglob("*")] == ["inside", "x.zip"] and not list(Path("/tmp").glob("evil*"))


def zeros(size):
    "A deflated stream of 2**24 x size zeros, without the work of making it."
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = pack.compress(bytes(2**24)) + pack.flush(zlib.Z_FULL_FLUSH)
    return block * size + pack.flush()


def zip_of_zeros(members, size, claim=None):
    "A zip whose members unpack to 2**24 x size zeros each, and claim that or another length."
    data = bytearray(packed([(f"{k}.dcm", zeros(size)) for k in range(members)], zipfile.ZIP_STORED))
    for mark, method, length in ((b"PK\x03\x04", 8, 22), (b"PK\x01\x02", 10, 24)):
        for m in re.finditer(mark, bytes(data)):
            data[m.start() + method] = zipfile.ZIP_DEFLATED
            data[m.start() + length:m.start() + length + 4] = struct.pack("<I", claim or size * 2**24)
    return bytes(data)


def test_zip_bombs(tmp_path):
    file = tmp_path / f"{ID}_20209_2_0.zip"
    file.write_bytes(zip_of_zeros(9, 4))
    assert file.stat().st_size < 2**20
    assert "claims 9 files of 576 MB" in refusal(read_cine, file)
    file.write_bytes(packed([(f"{k}", b"") for k in range(5001)], zipfile.ZIP_STORED))
    assert "5,001 files" in refusal(read_cine, file)
    file.write_bytes(zip_of_zeros(1, 128, claim=1000))  # 2 GB
    refusal(read_cine, file)
    file.write_bytes(packed([("inner.zip", zip_of_zeros(9, 4))]))
    assert "no DICOM image" in refusal(read_cine, file)
    file.write_bytes(packed([(f"{k}", d) for k, (_, d) in enumerate(scan(moving()))], zipfile.ZIP_LZMA))  # its memory is the sender's choice
    assert "unusual way" in refusal(read_cine, file)
    file.write_bytes(packed([("manifest.csv", b'"' + b"x" * 10**8)]))
    assert "manifest is larger than 4 MB" in refusal(read_cine, file)


def test_encrypted_zip(tmp_path):
    data = bytearray(packed([(f"{k}", d) for k, (_, d) in enumerate(scan(moving()))]))
    for m in re.finditer(rb"PK\x01\x02", bytes(data)): data[m.start() + 8] |= 1
    for m in re.finditer(rb"PK\x03\x04", bytes(data)): data[m.start() + 6] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    refusal(read_cine, tmp_path / "x.zip")


@pytest.mark.parametrize("tags", [dict(Rows=65535, Columns=65535), dict(NumberOfFrames=2_000_000_000), dict(Rows=0), dict(NumberOfFrames=-1),
                                  dict(NumberOfFrames=4000, Rows=2048, Columns=2048), dict(CardiacNumberOfImages=10**9), dict(BitsAllocated=64)])
def test_image_that_claims_too_much(tmp_path, tags):
    file = tmp_path / "x.zip"
    file.write_bytes(packed([(f"{k}", d) for k, (_, d) in enumerate(scan(moving(), **tags))]))
    refusal(read_cine, file)
    file = tmp_path / "x.dcm"
    file.write_bytes(image(moving()[0, 0], **tags))
    refusal(read_cine, file)


def test_many_images_that_claim_many_frames(tmp_path):
    small = image(moving()[0, 0], NumberOfFrames=5000)  # 200 such would be a table of a million rows
    (tmp_path / "x.zip").write_bytes(packed([(f"{k}", small) for k in range(200)]))
    assert "claims more than 5,000 frames" in refusal(read_cine, tmp_path / "x.zip")


def test_compressed_images_that_claim_too_much(tmp_path):
    ds = pydicom.dcmread(io.BytesIO(rle(moving(3, 2, 4, 5))))
    ds.Rows, ds.Columns = 2048, 2048
    (tmp_path / "x.dcm").write_bytes(saved(ds))
    refusal(read_cine, tmp_path / "x.dcm")


def test_images_that_cannot_be_unpacked(tmp_path):
    for syntax in ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.102"):
        files = []
        for series, data in scan(moving()):
            ds = pydicom.dcmread(io.BytesIO(data))
            ds.file_meta.TransferSyntaxUID = syntax
            ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8nothing that a decoder knows"])
            ds["PixelData"].VR = "OB"
            files.append((series, saved(ds)))
        (tmp_path / "x.zip").write_bytes(packed([(f"{k}", d) for k, (_, d) in enumerate(files)]))
        assert "cannot be unpacked" in refusal(read_cine, tmp_path / "x.zip")


def test_deflated_dicom_bomb(tmp_path):
    ds = new_dicom("1.2.840.10008.5.1.4.1.1.4")
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    head = saved(ds)
    (tmp_path / "x.dcm").write_bytes(head[:head.index(b"1.2.840.10008.1.2.1.99") + 22] + zeros(128))  # 2 GB
    for reader in (read_cine, read_ecg): assert "deflated" in refusal(reader, tmp_path / "x.dcm")


def test_deeply_nested_dicom(tmp_path):
    sequence = b"\x40\x00\x60\x02SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    file = tmp_path / "x.dcm"
    file.write_bytes(image(moving()[0, 0]) + sequence * 100_000)
    for reader in (read_cine, read_ecg): refusal(reader, file)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_that_claims_too_much(tmp_path, suffix):
    data = bytearray(nifti(moving()))
    for dim in ([4, 30_000, 30_000, 30_000, 30_000], [4, 512, 512, 12, 35], [4, 1, 1, 1, 30_000], [3, 2048, 2048, 32, 1], [4, 512, 512, 100, 100]):
        data[40:50] = np.array(dim, "<i2").tobytes()
        file = tmp_path / f"x{suffix}"
        file.write_bytes(gzip.compress(bytes(data)) if suffix.endswith("gz") else bytes(data))
        refusal(read_cine, file)


def test_largest_nifti_stays_within_memory(tmp_path):
    header = bytearray(nifti(moving().astype(np.float64))[:352])
    header[40:50] = np.array([4, 512, 256, 10, 50], "<i2").tobytes()  # 2**26 voxels, 512 MB as float64
    with gzip.open(tmp_path / "x.nii.gz", "wb", 1) as f:
        f.write(header)
        for _ in range(2): f.write(bytes(2**22))
    assert "cut short" in refusal(read_cine, tmp_path / "x.nii.gz")


def test_ten_hours_of_ecg(tmp_path):
    (tmp_path / "x.dcm").write_bytes(dicom_ecg(np.zeros((8, 5 * 3600 * 50)), fs=50, leads=["I", "II", *LEADS[6:]]))
    assert "lasts 300 min, and at most 10 are read" in refusal(read_ecg, tmp_path / "x.dcm")
    header = record(tmp_path, LEADS, voltages())
    header.write_text(header.read_text().replace("rec 12 500 600", f"rec 12 500 {10 * 3600 * 500}"))
    assert "lasts 600 min, and at most 10 are read" in refusal(read_ecg, header)
    with open(tmp_path / "x.xml", "wb") as f: f.write(b"<CardiologyXML>"); f.truncate(10 * 3600 * 500 * 12 * 4)
    assert "larger than 16 MB" in refusal(read_ecg, tmp_path / "x.xml")


@pytest.mark.parametrize("minutes", [10, 11])
@pytest.mark.parametrize("kind", ["dicom", "wfdb", "cardiology", "muse"])
def test_ten_minutes_are_read_and_not_more(kind, minutes, tmp_path):
    n, fs = minutes * 60 * 50, 50
    x, file = np.tile(voltages(200), n // 200), tmp_path / "x"
    if kind == "dicom": file.write_bytes(dicom_ecg(x, fs=fs))
    elif kind == "wfdb": record(tmp_path, LEADS, x, name="x", fs=fs)
    elif kind == "cardiology": file.write_bytes(strip(x).replace(b">500<", b">50<"))
    else: file.write_bytes(muse(x, base=fs))
    if minutes == 10: assert outcome(read_ecg, file).signal.shape == (12, n)
    else: assert "lasts 11 min, and at most 10 are read" in refusal(read_ecg, file)


def test_wfdb_header_that_claims_too_much(tmp_path):
    header = record(tmp_path, LEADS, voltages())
    text = header.read_text()
    lines = text.splitlines()
    for old, new in [("rec 12 500", "rec 900000000 500"), ("dat 16", "dat 16x999999999"), ("dat 16", "dat 16:999999999"), ("rec 12", "rec/9 12"),
                     ("dat 16", "dat 16+999999999"), ("rec.dat", "../rec.dat"), ("rec.dat", "/etc/passwd"), ("rec 12 500", "rec 12 0"),
                     ("rec.dat", "http://127.0.0.1/rec.dat")]:
        assert old in text
        header.write_text(text.replace(old, new))
        refusal(read_ecg, header)
    header.write_text("\n".join([lines[0], *lines[1:] * 200_000]))
    assert "larger than 1 MB" in refusal(read_ecg, header)


def test_links_and_pipes(tmp_path):
    for name in ("ecg.xml", "rec.hea", "sa.nii", "x.zip"): os.mkfifo(tmp_path / name)
    for name in ("ecg.xml", "x.zip"): assert "is no file" in refusal(read_ecg, tmp_path / name)
    for name in ("sa.nii", "x.zip"): assert "is no file" in refusal(read_cine, tmp_path / name)
    refusal(read_ecg, tmp_path / "rec.hea")
    (tmp_path / "zero.xml").symlink_to("/dev/zero")
    assert "is no file" in refusal(read_ecg, tmp_path / "zero.xml")
    folder = tmp_path / "loop"
    folder.mkdir()
    (folder / "again").symlink_to(folder)
    assert "no DICOM image" in refusal(read_cine, folder)
    assert "no such file" in refusal(read_cine, tmp_path / "nothing")
    assert "is a folder" in refusal(read_ecg, folder)
    for k in range(5001): (folder / f"{k}").touch()
    assert "more than 5,000 files" in refusal(read_cine, folder)


# the largest that is read, and what claims more: each in a process of its own, whose memory as a whole is measured

READERS = """
import json, os, sys
import test_fuzz
test_fuzz.libraries()
for line in sys.stdin:
    child = os.fork()
    if not child: test_fuzz.run_alone(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_alone(kind, how, path, said):
    "What a copy of a process that has loaded the readers does with one file; what it says goes into another."
    status = 1
    with open(said, "w") as out, redirect_stdout(out), redirect_stderr(out):
        try:
            reader = {"read_cine": read_cine, "read_ecg": read_ecg}[kind]
            if how == "reads": assert outcome(reader, Path(path)) is not None
            else: print(refusal(reader, Path(path)))
            memory = Path("/proc/self/status")
            if memory.exists(): assert int(re.search(r"VmHWM:\s+(\d+)", memory.read_text())[1]) * 1024 < MEMORY, "more than 1 GB"
            status = 0
        except BaseException: traceback.print_exc()
    os._exit(status)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "Runs a reader in a process of its own, with the guard; gives the message of a refusal."
    root, said = Path(__file__).parents[1], tmp_path_factory.mktemp("alone") / "said"
    env = os.environ | {"PYTHONPATH": f"{root / 'tests'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", READERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=env) as readers:
        def asked(kind, how, path):
            print(json.dumps([kind, how, str(path), str(said)]), file=readers.stdin, flush=True)
            status = readers.stdout.readline().strip()
            assert status == "0", f"{status}: {said.read_text()[-2000:]}"
            return said.read_text()
        yield asked
        readers.stdin.close()


def sparse(file, start, size):
    "A file that begins so and is as large, of which the zeros do not lie on the disk."
    with open(file, "wb") as f: f.write(start); f.truncate(size)
    return file


def test_wfdb_of_many_large_files(tmp_path, alone):
    names = [*LEADS, *"abcd"]
    def write(samples, fs, size):
        lines = [f"s{k}.dat 16 1000/mV 16 0 0 0 0 {name}" for k, name in enumerate(names)]
        (tmp_path / "r.hea").write_text("\n".join([f"r 16 {fs} {samples}", *lines]))
        for k in range(16): sparse(tmp_path / f"s{k}.dat", b"", size)
    write(12_000_000, 20_000, 24 * 2**20)
    assert "larger than 16 MB" in alone("read_ecg", "refuses", tmp_path / "r.hea")
    write(12_000_000, 20_000, 2**20)
    assert "has 192.0 million samples" in alone("read_ecg", "refuses", tmp_path / "r.hea")
    write("", 20_000, 2**20)  # no length in the header
    assert "million samples" in alone("read_ecg", "refuses", tmp_path / "r.hea")


def test_dicom_ecg_of_64_mb(tmp_path, alone):
    head = dicom_ecg(voltages(600))
    assert "larger than 16 MB" in alone("read_ecg", "refuses", sparse(tmp_path / "x.dcm", head, 2**26))


def test_largest_dicom_ecg(tmp_path, alone):
    (tmp_path / "x.dcm").write_bytes(dicom_ecg(np.tile(voltages(600), 1000), fs=1000))  # ten minutes at 1000 Hz
    alone("read_ecg", "reads", tmp_path / "x.dcm")


@pytest.mark.parametrize("element", [b"\xfe\xff\x00\xe0\0\0\0\0", b"\x09\x00\x01\x00LO\0\0"])
def test_dicom_of_empty_elements(element, tmp_path, alone):
    body = element * (15 * 2**17)
    if element[:2] == b"\x09\x00": body = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(body)) + body
    file = tmp_path / "x.dcm"
    file.write_bytes(saved(new_dicom("1.2.840.10008.5.1.4.1.1.9.1.1")) + b"\x00\x54\x00\x01SQ\0\0" + struct.pack("<I", len(body)) + body)
    assert "headers are longer" in alone("read_ecg", "refuses", file)
    head = image(moving()[0, 0])
    k = head.index(b"\xe0\x7f\x10\x00")
    file.write_bytes(head[:k] + b"\x00\x52\x29\x92SQ\0\0" + struct.pack("<I", len(body)) + body + head[k:])
    assert "headers are longer" in alone("read_cine", "refuses", file)


def test_zip_with_one_large_member(tmp_path, alone):
    head = image(moving()[0, 0])
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a", "w") as f:
        f.write(head)
        for _ in range(508): f.write(bytes(2**20))
    assert "a file of more than 200 MB" in alone("read_cine", "refuses", tmp_path / "x.zip")
    assert "larger than 200 MB" in alone("read_cine", "refuses", sparse(tmp_path / "x.dcm", head, 508 * 2**20))
    assert "headers are longer" in alone("read_cine", "refuses", sparse(tmp_path / "x.dcm", head, 199 * 2**20))  # zeros: empty elements


def test_largest_stack_of_images(tmp_path, alone):
    cine = np.zeros((39, 10, 512, 512), np.uint16)
    (tmp_path / "x.dcm").write_bytes(enhanced(cine))
    alone("read_cine", "reads", tmp_path / "x.dcm")


@pytest.mark.parametrize("label", [np.uint8, np.float32])
def test_largest_nifti_and_its_labels(label, tmp_path, alone):
    def write(name, dtype):
        header = bytearray(nifti(np.zeros((2, 2, 2, 2), dtype))[:352])
        header[40:50] = np.array([4, 512, 512, 10, 40], "<i2").tobytes()
        sparse(tmp_path / name, header, 352 + 100 * 2**20 * np.dtype(dtype).itemsize)
    write("sa.nii", np.float32)
    write("label_sa.nii", label)
    alone("read_cine", "reads", tmp_path)
    write("sa.nii", np.float64)
    assert "more than 512 MB of voxels" in alone("read_cine", "refuses", tmp_path / "sa.nii")


@pytest.mark.parametrize("offset, extension", [(1e10, 16), (1e6, 2**31 - 16), (0, 2**31 - 16)])
def test_nifti_with_much_before_its_voxels(offset, extension, tmp_path, alone):
    start = bytearray(nifti(moving())[:352])
    start[108:112], start[348:352] = struct.pack("<f", offset), b"\1\0\0\0"
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = pack.compress(bytes(start) + struct.pack("<ii", extension, 4)) + pack.flush(zlib.Z_FULL_FLUSH)
    block = pack.compress(bytes(2**24)) + pack.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "x.nii.gz").write_bytes(head + block * 640 + pack.flush())  # 10 GB
    alone("read_cine", "refuses" if offset > 2**20 else "reads", tmp_path / "x.nii.gz")

"""Small files of every format, with and without its traps, made by the libraries that read them.

They hold a number that looks like a participant's wherever a real file holds one, so that a leak would be seen.
"""
import base64
import binascii
import io
import struct
import zipfile

import nibabel as nib
import numpy as np
import pytest
import scipy.io
import wfdb
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from ptacl.core.presets import LEADS
from ptacl.data.standard_leads import EINTHOVEN

ID = str(10**6 + 234_567)  # looks like a participant
SAX = "CINE_segmented_SAX_b{}"


# ECG

def voltages(n=600, seed=0):
    "(12, n) mV, limb leads that obey Einthoven."
    rng = np.random.default_rng(seed)
    limb = EINTHOVEN @ rng.normal(size=(2, n)).cumsum(1) * 0.02
    return np.concatenate([limb, rng.normal(size=(6, n)).cumsum(1) * 0.02])


def strip(signal, leads=LEADS, inside=None, resolution='<Resolution units="uVperLsb">5</Resolution>', count=None, text=None):
    "A CardiologyXML with decoys of the strip before it."
    text = text or (lambda x: "\t\t" + ",\r\n\t\t".join(map(str, np.rint(x / .005).astype(int))))
    waves = "".join(f'<WaveformData lead="{lead}">{text(x)}</WaveformData>' for lead, x in zip(leads, signal))
    head = ('<SampleRate units="Hz">500</SampleRate>'
            f"<ChannelSampleCountTotal>{count or signal.shape[1]}</ChannelSampleCountTotal>{resolution}")
    body = f"<StripData>{head}{waves}</StripData>"
    if inside: body = f"<{inside}>{body}</{inside}>"
    trap = f'<WaveformData lead="I">{",".join(["999"] * signal.shape[1])}</WaveformData>'
    return (f'<?xml version="1.0" encoding="ISO-8859-1" ?><CardiologyXML><PatientInfo><PID>{ID}</PID><Note>\xe4rztlich</Note></PatientInfo>'
            f"<RestingECGMeasurements><MedianSamples>{head}{trap}</MedianSamples></RestingECGMeasurements>"
            f"<FullDisclosure>{head}{trap}</FullDisclosure>{body}</CardiologyXML>").encode("iso-8859-1")


def muse(signal, leads=("I", "II", *LEADS[6:]), step=4.88, unit="MICROVOLTS", base=500, exponent=0, kinds=("Median", "Rhythm"), count=None,
         start=0):
    "A GE MUSE XML: (12, n) mV, of which only some leads are stored; the median beat before the rhythm strip."
    def lead(name, x):
        data = base64.encodebytes(np.rint(x / step * (1 if unit == "MILLIVOLTS" else 1000)).astype("<i2").tobytes()).decode()
        return (f"<LeadData><LeadByteCountTotal>{2 * len(x)}</LeadByteCountTotal><LeadSampleCountTotal>{count or len(x)}</LeadSampleCountTotal>"
                f"<LeadAmplitudeUnitsPerBit>{step}</LeadAmplitudeUnitsPerBit><LeadAmplitudeUnits>{unit}</LeadAmplitudeUnits>"
                f"<LeadTimeOffset>{start if name == 'V6' else 0}</LeadTimeOffset>"
                f"<LeadID>{name}</LeadID><LeadSampleSize>2</LeadSampleSize><WaveFormData>\n{data}</WaveFormData></LeadData>")
    x = dict(zip(LEADS, signal))
    waves = "".join(f"<Waveform><WaveformType>{kind}</WaveformType><SampleBase>{base}</SampleBase><SampleExponent>{exponent}</SampleExponent>"
                    + "".join(lead(n, x[n] if kind == "Rhythm" else 9 + 0 * x[n][:30]) for n in leads) + "</Waveform>" for kind in kinds)
    return (f'<?xml version="1.0" encoding="ISO-8859-1"?><!DOCTYPE RestingECG SYSTEM "restecg.dtd"><RestingECG><PatientDemographics>'
            f"<PatientID>{ID}</PatientID></PatientDemographics>{waves}</RestingECG>").encode("iso-8859-1")


def code(value, meaning):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "x", meaning
    return item


def new_dicom(sop_class, **tags):
    "A dataset with what every DICOM file has."
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.SOPClassUID, ds.SOPInstanceUID = ExplicitVRLittleEndian, sop_class, generate_uid()
    ds.PatientID, ds.PatientName = ID, f"Some^Body^{ID}"
    for key, value in tags.items(): setattr(ds, key, value)
    return ds


def saved(ds) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom_ecg(signal, fs=500, leads=LEADS, sensitivity=5.0, unit="uV", correction=1.0) -> bytes:
    "A DICOM ECG of 16 bits: the voltage is count x sensitivity x correction."
    group, channels = Dataset(), []
    for lead in leads:
        channel = Dataset()
        channel.ChannelSourceSequence = [code("x", f"Lead {lead}")]
        channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor, channel.ChannelBaseline = sensitivity, correction, 0
        channel.ChannelSensitivityUnitsSequence = [code(unit, unit)]
        channel.WaveformBitsStored = 16
        channels.append(channel)
    group.MultiplexGroupTimeOffset, group.WaveformOriginality, group.SamplingFrequency = 0, "ORIGINAL", fs
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = signal.shape
    group.ChannelDefinitionSequence, group.WaveformBitsAllocated, group.WaveformSampleInterpretation = channels, 16, "SS"
    group.WaveformData = np.rint(signal.T * (1 if unit == "mV" else 1000) / (sensitivity * correction)).astype("<i2").tobytes()
    return saved(new_dicom("1.2.840.10008.5.1.4.1.1.9.1.1", WaveformSequence=[group]))


def record(folder, names, signal, units="mV", name="rec", fs=500):
    "A WFDB record; gives the path of its header."
    wfdb.wrsamp(name, fs=fs, units=[units] * len(names), sig_name=list(names), p_signal=np.asarray(signal).T,
                fmt=["16"] * len(names), write_dir=str(folder))
    return folder / f"{name}.hea"


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def mat(**values):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, values, do_compression=True)
    return buffer.getvalue()


def csv(x, names=LEADS, unit=" (mV)", time="time (s)", separator=",", decimal=".", step=0.002):
    rows = [[f"{k * step:.6g}"] * bool(time) + [f"{v:.5f}" for v in column] for k, column in enumerate(x.T)]
    head = [[time] * bool(time) + [f"{name}{unit}" for name in names]] if names else []
    text = "\n".join(separator.join(row) for row in rows).replace(".", decimal)
    return ("\n".join(separator.join(row) for row in head) + "\n" * bool(head) + text + "\n").encode()


def aecg(x, unit="uV", step=("0.002", "s"), scale=5.0, names="MDC_ECG_LEAD_{}", kind="series", origin=0):
    def sequence(code, value): return f'<component><sequence><code code="{code}"/><value>{value}</value></sequence></component>'
    def lead(name, v):
        digits = " ".join(map(str, np.rint(v * 1000 / 5).astype(int)))
        scales = f'<origin value="{origin}" unit="{unit}"/><scale value="{scale}" unit="{unit}"/>'
        return sequence(names.format(name.upper()), f"{scales}<digits>{digits}</digits>")
    time = sequence("TIME_ABSOLUTE", f'<head value="20260101"/><increment value="{step[0]}" unit="{step[1]}"/>')
    leads = "".join(lead(name, v) for name, v in zip(LEADS, x))
    return (f'<?xml version="1.0"?><AnnotatedECG xmlns="urn:hl7-org:v3"><id root="{ID}"/><component><series><{kind}><sequenceSet>{time}{leads}'
            f"</sequenceSet></{kind}></series></component></AnnotatedECG>").replace("<series><series>", "<series><component>").replace(
            "</series></series>", "</component></series>").encode()


# cines

def eli(x, per_mv=200, fs=500, names=LEADS, **more) -> bytes:
    "A Mortara ELI XML, of whole numbers in base64."
    more = "".join(f' {name}="{value}"' for name, value in more.items())
    def channel(name, v):
        data = base64.b64encode(np.rint(v * per_mv).astype("<i2").tobytes()).decode()
        return f'<CHANNEL NAME="{name}" SAMPLE_FREQ="{fs}" DURATION="{len(v)}" UNITS_PER_MV="{per_mv}"{more} DATA="{data}"/>'
    subject = '<SUBJECT LAST_NAME="Smith" ID="7654' + '321"/>'
    return f'<ECG ACQUISITION_TIME="20260101120000">{subject}{"".join(map(channel, names, x))}</ECG>'.encode()


def xli(counts) -> bytes:
    "Philips' packing: second differences, all high bytes before all low ones, each a code of ten bits."
    packed = b""
    for x in np.asarray(counts, int):
        turn = 2 * x[1:-1] - x[:-2] - x[2:]              # what the sample after next departs by
        codes = np.concatenate([x[:2], 64 + turn[1:], [64]]).astype(np.int64) & 0xFFFF
        bits = "".join(f"{b:010b}" for b in [*(codes >> 8), *(codes & 0xFF)])
        body = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
        packed += struct.pack("<IHh", len(body), 0, turn[0]) + body
    return packed


def sierra(x, fs=500, step=5.0, packed=True, version="1.04", names=LEADS, resolution=True) -> bytes:
    "A Philips Sierra XML; packed, four limb leads are kept as what they depart from Einthoven's law by."
    counts = np.rint(1000 * x / step).astype(int)
    if packed:
        one, two, three = counts[:3]
        counts = counts.copy()
        counts[2] = two - one - counts[2]
        counts[3] = -counts[3] - (one + two) // 2
        counts[4] = (one - three) // 2 - counts[4]
        counts[5] = (two + three) // 2 - counts[5]
    data = base64.b64encode(xli(counts) if packed else counts.astype("<i2").tobytes()).decode()
    method = 'compression="XLI"' if packed else ""
    known = f'<resolution>{step}</resolution>' if resolution else ""
    return (f'<?xml version="1.0"?><restingecgdata xmlns="http://www3.medical.philips.com"><documentinfo><documenttype>SierraECG</documenttype>'
            f'<documentversion>{version}</documentversion></documentinfo><dataacquisition><signalcharacteristics><samplingrate>{fs}</samplingrate>'
            f'{known}<numberchannelsallocated>12</numberchannelsallocated></signalcharacteristics></dataacquisition><waveforms>'
            f'<parsedwaveforms durationperchannel="{1000 * x.shape[1] // fs}" numberofleads="{len(names)}" leadlabels="{" ".join(names)}" '
            f'dataencoding="Base64" {method}>{data}</parsedwaveforms></waveforms></restingecgdata>').encode()


SCP_CODES = {"I": 1, "II": 2, **{f"V{k}": k + 2 for k in range(1, 7)}, "III": 61, "aVR": 62, "aVL": 63, "aVF": 64}


def huffman(values) -> bytes:
    "Whole numbers in the default code of SCP-ECG."
    def code(v):
        if v == 0: return "0"
        if abs(v) <= 8: return "1" * abs(v) + "0" + "01"[int(v < 0)]
        return f"1111111110{v & 0xFF:08b}" if -128 <= v < 128 else f"1111111111{v & 0xFFFF:016b}"
    bits = "".join(code(int(v)) for v in values)
    return int("1" + bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8) + 1, "big")[1:]


def scp(x, step=2.5, fs=500, names=LEADS, packed=True, multiplier=None, first=1) -> bytes:
    "An SCP-ECG with second differences in the default Huffman code, or with plain samples."
    counts = np.rint(1000 * x / step).astype(int)
    N = counts.shape[1]
    def section(number, body):
        body += bytes(len(body) % 2)
        head = struct.pack("<HIBB", number, 16 + len(body), 20, 20) + (b"SCPECG" if number == 0 else bytes(6))
        return struct.pack("<H", binascii.crc_hqx(head + body, 0xFFFF)) + head + body
    if packed: leads = [huffman([*v[:2], *np.diff(v, 2)]) for v in counts.tolist()]
    else: leads = [v.astype("<i2").tobytes() for v in counts]
    nanovolt = round(1000 * step) if multiplier is None else multiplier
    starts = [1] * (len(names) - 1) + [first]
    defined = b"".join(struct.pack("<IIB", a, a + N - 1, SCP_CODES[n]) for a, n in zip(starts, names))
    rhythm = struct.pack("<HHBB", nanovolt, 1_000_000 // fs, 2 * packed, 0) + struct.pack(f"<{len(leads)}H", *map(len, leads)) + b"".join(leads)
    bodies = {1: b"\xff\0\0", **({2: struct.pack("<H", 19999)} if packed else {}), 3: bytes([len(names), 0x04 | len(names) << 3 & 0xFF]) + defined,
              6: rhythm}
    sections = {k: section(k, body) for k, body in bodies.items()}
    at, pointers = 7 + 16 + 120, b""
    for k in range(12):
        size = 16 + 120 if k == 0 else len(sections.get(k, b""))
        pointers += struct.pack("<HII", k, size, 7 if k == 0 else at if size else 0)
        at += size if k else 0
    data = section(0, pointers) + b"".join(sections[k] for k in sorted(sections))
    data = struct.pack("<I", 6 + len(data)) + data
    return struct.pack("<H", binascii.crc_hqx(data, 0xFFFF)) + data


def hdf5(array, name="tracings", attributes=None, chunked=True, **more) -> bytes:
    "An HDF5 file with one data set, its attributes, and small ones beside it."
    h5py = pytest.importorskip("h5py")
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        data = file.create_dataset(name, data=array, **({"compression": "gzip"} if chunked else {}))
        for key, value in (attributes or {}).items(): data.attrs[key] = value
        for key, value in more.items(): file[key] = value
    return stream.getvalue()


def edf(x, fs=500, unit="uV", names=tuple(f"ECG {n}" for n in LEADS)) -> bytes:
    "An EDF of one-second records, written as its specification says: 16-bit numbers between -5 and 5 mV."
    def fields(width, values): return "".join(f"{v:<{width}}"[:width] for v in values)
    n, seconds = len(x), x.shape[1] // fs
    head = f"{'0':<8}{'X X X X':<80}{'Startdate X X X X':<80}01.01.2601.01.01{256 * (n + 1):<8}{'':<44}{seconds:<8}{1:<8}{n:<4}"
    head += fields(16, names) + fields(80, [""] * n) + fields(8, [unit] * n) + fields(8, [-5000] * n) + fields(8, [5000] * n)
    head += fields(8, [-32768] * n) + fields(8, [32767] * n) + fields(80, [""] * n) + fields(8, [fs] * n) + fields(32, [""] * n)
    counts = np.rint((1000 * x[:, :seconds * fs] + 5000) / 10000 * 65535 - 32768).astype("<i2")
    return head.encode() + counts.reshape(n, seconds, fs).swapaxes(0, 1).tobytes()


def moving(F=6, Z=3, H=9, W=8, seed=0):
    "(F, Z, H, W) uint16 in which no two frames are alike."
    return np.random.default_rng(seed).integers(0, 1000, (F, Z, H, W), dtype=np.uint16)


def image(pixels, series="cine", **tags) -> bytes:
    "One DICOM image, of one frame or of several."
    known = dict(SeriesDescription=series, SeriesInstanceUID="1.2.3", PixelSpacing=[2.0, 1.5], SliceThickness=8,
                 ImageOrientationPatient=[1, 0, 0, 0, 1, 0], SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", PixelRepresentation=0,
                 BitsAllocated=16, BitsStored=16, HighBit=15, Rows=pixels.shape[-2], Columns=pixels.shape[-1], PixelData=pixels.tobytes())
    return saved(new_dicom("1.2.840.10008.5.1.4.1.1.4", **(known | tags)))


def scan(cine, names=SAX, uid="1.2.3.1", time=lambda f, z: 20 * f, keep=lambda f, z: True, seed=0, orientation=(1, 0, 0, 0, 1, 0),
         step=10.0, **tags):
    "A stack (F, Z, H, W) as (series, bytes) of single images, shuffled; instance numbers run against time."
    F, Z = cine.shape[:2]
    normal = np.cross(*np.reshape(orientation, (2, 3)))
    places = [fz for fz in np.random.default_rng(seed).permutation(list(np.ndindex(F, Z))).tolist() if keep(*fz)]
    return [(names.format(z + 1), image(cine[f, z], names.format(z + 1), **(dict(
        SeriesInstanceUID=f"{uid}.{z}", InstanceNumber=F - f, TriggerTime=time(f, z), CardiacNumberOfImages=F,
        ImageOrientationPatient=list(orientation), ImagePositionPatient=(step * z * normal).tolist()) | tags))) for f, z in places]


def packed(files, method=zipfile.ZIP_DEFLATED) -> bytes:
    "A zip of (name, bytes)."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files: archive.writestr(name, data)
    return buffer.getvalue()


def ukb_zip(files, manifest="manifest.csv", date="Aug 30, 2015", column="series discription") -> bytes:
    "A zip as field 20209 has it, from (series, bytes)."
    named = [(f"{ID}.1.3.12.2.{k}.dcm", series, data) for k, (series, data) in enumerate(files)]
    rows = [f"filename,patientid,date,{column},modality"] + [f"{name},{ID},{date},{series},MR" for name, series, _ in named]
    listed = [(manifest, "\n".join(rows).encode())] if manifest else []
    return packed([(name, data) for name, _, data in named] + listed)


def enhanced(cine, shuffle=True, seed=0) -> bytes:
    "A multi-frame DICOM with functional groups, frames shuffled."
    order = list(np.ndindex(*cine.shape[:2]))
    if shuffle: order = np.random.default_rng(seed).permutation(order).tolist()
    groups, shared = [], Dataset()
    for f, z in order:
        group, delay, place = Dataset(), Dataset(), Dataset()
        delay.NominalCardiacTriggerDelayTime, place.ImagePositionPatient = 20.0 * f, [0, 0, 10 * z]
        group.CardiacSynchronizationSequence, group.PlanePositionSequence = [delay], [place]
        groups.append(group)
    size, plane = Dataset(), Dataset()
    size.PixelSpacing, size.SliceThickness, plane.ImageOrientationPatient = [2.0, 1.5], 8, [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [size], [plane]
    ds = new_dicom("1.2.840.10008.5.1.4.1.1.4.1", SeriesDescription="cine", SeriesInstanceUID="1.2.3", SamplesPerPixel=1,
                   PhotometricInterpretation="MONOCHROME2", PixelRepresentation=0, BitsAllocated=16, BitsStored=16, HighBit=15,
                   NumberOfFrames=len(order), Rows=cine.shape[2], Columns=cine.shape[3], SharedFunctionalGroupsSequence=[shared],
                   PerFrameFunctionalGroupsSequence=groups, PixelData=np.stack([cine[f, z] for f, z in order]).tobytes())
    return saved(ds)


def nifti(cine, zooms=(1.5, 2, 10, 0.1)) -> bytes:
    "A NIfTI of (F, Z, H, W), or of (Z, H, W)."
    picture = nib.Nifti1Image(np.ascontiguousarray(cine.T), np.diag([1.5, 2, 10, 1]))
    picture.header["descrip"] = ID
    picture.header.set_xyzt_units("mm", "sec")
    picture.header.set_zooms(zooms[:cine.ndim])
    return picture.to_bytes()


def acdc(folder, cine, labels, ed=1, es=4, name="patient001"):
    "A folder of ACDC: (F, Z, H, W) and labels in ACDC's numbers; ed and es count from 1."
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_4d.nii").write_bytes(nifti(cine))
    for f in (ed, es): (folder / f"{name}_frame{f:02d}_gt.nii").write_bytes(nifti(labels[f - 1]))
    (folder / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: {len(cine)}\nWeight: 95.0\n")
    return folder

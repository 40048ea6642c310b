#!/usr/bin/env bash
# pydicom 3.0.2: `multiplex_array` of a DICOM ECG in Explicit VR Big Endian gives every sample with its two bytes exchanged.
#
# A good guess: a dataset knows the byte order of its file, `pixel_array` heeds it, and so do the numbers of all elements;
# so the samples of a waveform come out as they were written, whatever the transfer syntax.
# What happens: WaveformData is a string of bytes for pydicom, and `multiplex_array` reads it as little endian always. A
# sample of 1 becomes 256, one of −2 becomes −257, without a warning; the elements beside it (rate, sensitivity) are right.
# Why it matters: the syntax was retired in 2006, and files that were written before are still
# to be read. The record has the right length, leads and rate, and a voltage of noise: with a gain of 5 µV some 100 mV,
# which a check of the amplitude sees, and a z-score hides. The bytes have to be exchanged by whoever reads
# (`original_encoding[1]` is False).
#
# The file is made here. Exits with 0 while it is so, with 1 when that changes.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet pydicom==3.0.2 numpy==2.4.6
cat > "$tmp/ask.py" <<'PY'
import sys
from importlib.metadata import version

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid
from pydicom.waveforms import multiplex_array

samples = np.array([[1, -2], [300, 0], [-500, 7]])


def written(syntax, order, name):
    channel = Dataset()
    channel.ChannelSensitivity, channel.ChannelBaseline, channel.WaveformBitsStored = 5, 0, 16
    group = Dataset()
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples, group.SamplingFrequency = 2, 3, 500
    group.ChannelDefinitionSequence = [channel, channel]
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    group.WaveformData = samples.astype(f"{order}i2").tobytes()
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.9.1.1", generate_uid()
    ds.WaveformSequence = [group]
    pydicom.dcmwrite(name, ds, implicit_vr=False, little_endian=order == "<", enforce_file_format=True)
    return pydicom.dcmread(name)


little = written(ExplicitVRLittleEndian, "<", sys.argv[1] + "/little.dcm")
big = written(ExplicitVRBigEndian, ">", sys.argv[1] + "/big.dcm")
print("pydicom", version("pydicom"))
print("written:          ", samples.tolist())
print("little endian:    ", multiplex_array(little, 0, as_raw=True).tolist())
found = multiplex_array(big, 0, as_raw=True)
print("big endian:       ", found.tolist(), "at", big.WaveformSequence[0].SamplingFrequency, "Hz")
print("bytes exchanged:  ", found.byteswap().tolist())
right = np.array_equal(multiplex_array(little, 0, as_raw=True), samples)
exchanged = not np.array_equal(found, samples) and np.array_equal(found.byteswap(), samples)
sys.exit(0 if right and exchanged and big.original_encoding[1] is False else 1)
PY
"$tmp/venv/bin/python" "$tmp/ask.py" "$tmp"

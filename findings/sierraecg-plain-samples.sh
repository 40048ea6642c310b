#!/usr/bin/env bash
# sierraecg 0.4.0, a reader of Philips Sierra XML: a file whose leads are stored plainly.
#
# A good guess: `parsedwaveforms` without a `compression` attribute is the easy case. Its samples are base64 of 16-bit
# integers, the reader has nothing to unpack, and what it returns is what was written.
# What happens: ValueError "assignment destination is read-only". The samples are a view of the decoded bytes, which
# nobody may write to, and the limb leads III, aVR, aVL and aVF are then worked out in place.
# Why it matters: whoever takes a ValueError of a reader for a damaged file throws away whole ECGs.
#
# The file is made here. Exits with 0 while it is so, with 1 when that changes.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet sierraecg==0.4.0
cat > "$tmp/ask.py" <<'PY'
import base64
import sys
from importlib.metadata import version

import numpy as np
import sierraecg

LEADS = "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6".split()
t = np.arange(5000) / 500
beat = np.exp(-0.5 * (((t % 0.8) - 0.4) / 0.01) ** 2)
one, two = np.rint(140 * beat).astype(int), np.rint(220 * beat).astype(int)
samples = np.stack([one, two, *[0 * one] * 4, *[one] * 6]).astype("<i2")
data = base64.b64encode(samples.tobytes()).decode()
text = f"""<?xml version="1.0" encoding="UTF-8"?>
<restingecgdata xmlns="http://www3.medical.philips.com">
<documentinfo><documenttype>SierraECG</documenttype><documentversion>1.04</documentversion></documentinfo>
<dataacquisition><signalcharacteristics><samplingrate>500</samplingrate><resolution>5</resolution>
<numberchannelsallocated>12</numberchannelsallocated></signalcharacteristics></dataacquisition>
<waveforms><parsedwaveforms durationperchannel="10000" numberofleads="12" leadlabels="{' '.join(LEADS)}"
dataencoding="Base64">{data}</parsedwaveforms></waveforms></restingecgdata>"""
with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.write(text)
print("sierraecg", version("sierraecg"), "numpy", np.__version__)
try:
    sierraecg.read_file(sys.argv[1])
except ValueError as error:
    print("ValueError:", error)
    sys.exit(0 if "read-only" in str(error) else 1)
print("read without an error")
sys.exit(1)
PY
"$tmp/venv/bin/python" "$tmp/ask.py" "$tmp/plain.xml"

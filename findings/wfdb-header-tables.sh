#!/usr/bin/env bash
# wfdb 4.3.1 with pandas 3.1.1: most of the time of reading a short record goes into its header.
#
# A good guess: `rdrecord` of a ten-second ECG of twelve leads takes as long as its 120 kB of samples; the header is a
# dozen lines of text.
# What happens: for each field of each signal, `rdheader` looks the field's kind and default up in a DataFrame of
# constants with `.loc`, 239 single cells for twelve leads. That takes ten times as long as reading, unpacking and scaling
# the 60,000 samples: 11.4 ms of 12.2. With dictionaries in place of the two DataFrames the same record comes out, field
# by field, in a ninth of the time, 1.3 ms.
# Why it matters: archives such as PTB-XL have tens of thousands of such records, and what a reader spends is nearly all
# in the header.
#
# The record is made here. Exits with 0 while it is so, with 1 when that changes.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet wfdb==4.3.1 pandas==3.1.1
cat > "$tmp/ask.py" <<'PY'
import os
import sys
import time
from importlib.metadata import version
from unittest.mock import patch

import numpy as np
import wfdb
from wfdb.io import _header

os.chdir(sys.argv[1])
leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
rng = np.random.default_rng(0)
wfdb.wrsamp("rec", fs=500, units=["mV"] * 12, sig_name=leads, p_signal=rng.normal(size=(5000, 12)), fmt=["16"] * 12)


def seconds(f, times=15):
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        f()
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[times // 2]


class Looked:
    "Single cells of a table from a dictionary, and how many were asked for."
    def __init__(self, table):
        self.index, self.asked = list(table.index), 0
        self.cells = {(row, column): table.at[row, column] for row in table.index for column in table.columns}
        self.loc = self

    def __getitem__(self, cell):
        self.asked += 1
        return self.cells[cell]


whole, header = seconds(lambda: wfdb.rdrecord("rec")), seconds(lambda: wfdb.rdheader("rec"))
tables = {name: Looked(getattr(_header, name)) for name in ("RECORD_SPECS", "SIGNAL_SPECS")}
slow = wfdb.rdrecord("rec")
with patch.multiple(_header, **tables):
    same = wfdb.rdrecord("rec") == slow
    asked = sum(table.asked for table in tables.values())
    quick = seconds(lambda: wfdb.rdrecord("rec"))
print("wfdb", version("wfdb"), "pandas", version("pandas"))
print(f"record {1000 * whole:.1f} ms, of which its header {1000 * header:.1f} ms, in {asked} look-ups")
print(f"with dictionaries {1000 * quick:.1f} ms; the same record: {same}")
sys.exit(0 if same and asked > 200 and header > 0.6 * whole and quick < 0.5 * whole else 1)
PY
"$tmp/venv/bin/python" "$tmp/ask.py" "$tmp"

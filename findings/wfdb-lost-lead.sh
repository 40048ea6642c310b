#!/usr/bin/env bash
# wfdb 4.3.1: `wrsamp` writes single missing samples, but refuses a record of which one lead is missing altogether.
#
# A good guess: NaN is how missing samples are given, and the format has a value for them (−32768 in format 16). So a lead
# that fell off becomes a column of that value, as a gap of some samples does.
# What happens: a gap is written and read back as NaN. Where a whole lead is NaN, its gain is computed from a range that
# there is not, and numpy's "cannot convert float NaN to integer" is raised, which names neither lead nor cause.
# Why it matters: lost leads are the commonest defect of twelve-lead recordings. Who converts a cohort by `wrsamp` loses
# just those records, or learns to fill the lead with zeros, which then looks like a measured flat line. Gain and baseline
# given by hand (`adc_gain`, `baseline`, `d_signal`) write it as it is meant.
#
# The records are made here. Exits with 0 while it is so, with 1 when that changes.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet wfdb==4.3.1
cat > "$tmp/ask.py" <<'PY'
import os
import sys
import warnings
from importlib.metadata import version

import numpy as np
import wfdb

warnings.filterwarnings("ignore")
os.chdir(sys.argv[1])
about = {"fs": 500, "units": ["mV"] * 3, "sig_name": ["I", "II", "V1"], "fmt": ["16"] * 3}
ecg = np.random.default_rng(0).normal(size=(5000, 3))
gap, lost = ecg.copy(), ecg.copy()
gap[100:110, 2] = np.nan
lost[:, 2] = np.nan
print("wfdb", version("wfdb"))
wfdb.wrsamp("gap", p_signal=gap, **about)
missing = int(np.isnan(wfdb.rdrecord("gap").p_signal[:, 2]).sum())
print(f"ten samples missing: written, {missing} read back as NaN")
try:
    wfdb.wrsamp("lost", p_signal=lost, **about)
    said = ""
except ValueError as error:
    said = str(error)
print(f"a whole lead missing: {said or 'written'}")
counts = np.where(np.isnan(lost), -32768, np.round(np.nan_to_num(lost) * 1000)).astype("int64")
wfdb.wrsamp("byhand", d_signal=counts, adc_gain=[1000.] * 3, baseline=[0] * 3, **about)
whole = int(np.isnan(wfdb.rdrecord("byhand").p_signal[:, 2]).sum())
print(f"with gain and baseline by hand: written, {whole} read back as NaN")
sys.exit(0 if missing == 10 and "NaN to integer" in said and whole == 5000 else 1)
PY
"$tmp/venv/bin/python" "$tmp/ask.py" "$tmp"

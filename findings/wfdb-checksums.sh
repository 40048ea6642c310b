#!/usr/bin/env bash
# wfdb 4.3.1: `rdrecord` does not look at the checksums of a header: another record's signal file is read without a word.
#
# A good guess: each signal's line of a header ends in the sum of its samples so that a reader can tell whether it has the
# right, undamaged file; the library computes these sums when it writes, so it compares them when it reads.
# What happens: with the signal file of another record of the same size in its place, `rdrecord` returns that record's
# samples under the first one's name. The checksums of the header are handed out as they stand, and `calc_checksum`
# gives other numbers for every lead.
# Why it matters: whoever renames, joins or repairs a data set can exchange signal files, and a cut copy that was filled up
# has the right size, too. Twelve sums in the header say so, and nobody asks them: labels are then learned from another
# person's heart. Comparing costs some hundredths of a millisecond a record.
#
# The records are made here. Exits with 0 while it is so, with 1 when that changes.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet wfdb==4.3.1
cat > "$tmp/ask.py" <<'PY'
import os
import shutil
import sys
import warnings
from importlib.metadata import version

import numpy as np
import wfdb

warnings.filterwarnings("ignore")
os.chdir(sys.argv[1])
leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
for name, seed in (("one", 0), ("other", 1)):
    counts = np.random.default_rng(seed).integers(-900, 900, (5000, 12))
    wfdb.wrsamp(name, fs=500, units=["mV"] * 12, sig_name=leads, d_signal=counts, fmt=["16"] * 12,
                adc_gain=[1000.] * 12, baseline=[0] * 12)
shutil.copy("other.dat", "one.dat")
print("wfdb", version("wfdb"))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    record = wfdb.rdrecord("one", physical=False)
told = [str(w.message) for w in said if "checksum" in str(w.message).lower()]
theirs = np.array_equal(record.d_signal, wfdb.rdrecord("other", physical=False).d_signal)
wrong = sum((a - b) % 2**16 != 0 for a, b in zip(record.calc_checksum(), record.checksum))
print(f"read under the name of one: samples of the other: {theirs}; words about checksums: {len(told)}")
print(f"{wrong} of {len(leads)} checksums of the header are not those of the samples")
sys.exit(0 if theirs and not told and wrong == 12 else 1)
PY
"$tmp/venv/bin/python" "$tmp/ask.py" "$tmp"

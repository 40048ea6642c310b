#!/usr/bin/env bash
# neurokit2 0.3.0: the method "ssf" of `ecg_peaks` works on no voltage that people have.
#
# A good guess: a detector of R-peaks finds the same beats whether an ECG is in volts, millivolts or microvolts; thirteen
# other methods do, and nothing in the documentation names a unit.
# What happens, on neurokit2's own simulated ECG of 500 Hz: in volts and in millivolts, which the simulator makes and
# files hold, "ssf" finds no beat at all, and says nothing; in microvolts it finds four marks for every beat. Its
# threshold of the slope sum, 20, is a number without a unit.
# Why it matters: in a comparison of detectors, or as one of several that vote, "ssf" counts as one that sees nothing.
#
# The record is made here. Exits with 0 while it is so, with 1 when that changes.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet neurokit2==0.3.0
cat > "$tmp/ask.py" <<'PY'
import sys
import warnings
from importlib.metadata import version

import neurokit2 as nk

warnings.simplefilter("ignore")
FS = 500
mv = nk.ecg_simulate(duration=20, sampling_rate=FS, heart_rate=70, noise=0, random_state=1)
print("neurokit2", version("neurokit2"), "peaks in V, mV, µV")
found = {}
for method in ("neurokit", "hamilton2002", "zong2003", "ssf"):
    found[method] = []
    for factor in (0.001, 1, 1000):
        clean = mv * factor if method == "ssf" else nk.ecg_clean(mv * factor, sampling_rate=FS, method=method)
        found[method].append(len(nk.ecg_peaks(clean, sampling_rate=FS, method=method)[1]["ECG_R_Peaks"]))
    print(f"{method:14} {found[method]}")
usual = found["neurokit"][0]
others = all(len(set(found[method])) == 1 for method in ("neurokit", "hamilton2002", "zong2003"))
sys.exit(0 if others and found["ssf"][:2] == [0, 0] and found["ssf"][2] > 3 * usual else 1)
PY
"$tmp/venv/bin/python" "$tmp/ask.py"

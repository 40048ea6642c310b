#!/usr/bin/env bash
# wfdb 4.3.1: `processing.resample_sig` bends both ends of a record towards each other.
#
# A good guess: the resampled record lies on the recorded one wherever the ECG has nothing above the new Nyquist rate,
# at its ends as well.
# What happens: the signal is resampled in Fourier space, which takes ten seconds for one period of something endless.
# Where the baseline does not end where it began, as it never does in a recording, the first and last samples ring: with
# a baseline that drifts by 0.5 mV, halving the rate moves the outermost by 0.4 mV, and those after 20 ms by 0.02 mV. In
# the middle the two agree to half a microvolt.
# Why it matters: 0.4 mV at the edge looks like the beginning of a QRS complex; where crops of ten seconds are resampled
# one by one, every crop has two such edges, which a network can learn. scipy's `resample_poly` with padtype="line" stays
# within half a microvolt throughout.
#
# The signal is made here. Exits with 0 while it is so, with 1 when that changes.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet wfdb==4.3.1
cat > "$tmp/ask.py" <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from scipy.signal import resample_poly
from wfdb.processing import resample_sig


def signal(t):
    "Beats of 8 Hz and less on a baseline that drifts by half a millivolt in ten seconds."
    return 0.05 * t + np.exp(-((t % 0.8 - 0.4) / 0.04) ** 2)


fast, slow = np.arange(5000) / 500, np.arange(2500) / 250
off = np.abs(resample_sig(signal(fast), 500, 250)[0] - signal(slow))
poly = np.abs(resample_poly(signal(fast), 1, 2, padtype="line") - signal(slow))
ends, middle = max(off[0], off[-1]), off[500:-500].max()
print("wfdb", version("wfdb"), "scipy", version("scipy"))
print(f"resample_sig: {1000 * ends:.0f} µV off at the ends, {1000 * off[5]:.0f} µV after 20 ms, {1000 * middle:.2f} µV in the middle")
print(f"resample_poly: {1000 * poly.max():.1f} µV at most")
sys.exit(0 if ends > 0.1 and middle < 0.005 and poly.max() < 0.05 else 1)
PY
"$tmp/venv/bin/python" "$tmp/ask.py"

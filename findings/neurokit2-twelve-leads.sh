#!/usr/bin/env bash
# neurokit2 0.3.0: the twelve leads that `ecg_simulate(method="multileads")` makes are not those of one heart.
#
# A good guess: leads called I, II, III, aVR, aVL and aVF obey what every recorder's do, since four of them are computed
# from the other two: III = II − I (Einthoven), aVR = −(I + II)/2, aVL = I − II/2, aVF = II − I/2 (Goldberger).
# What happens: each lead is scaled by itself, so the laws fail by about as much as the leads are high: III by 1.0 of
# 1.2 mV, aVR by 1.5 mV, aVL and aVF by about half a millivolt.
# Why it matters: who checks the order or the polarity of leads by these laws (as readers of arrays without names must)
# and tries it on simulated leads sees right orders refused. And a model that learns from such leads is shown twelve
# independent channels, where a recording holds eight.
#
# Exits with 0 while it is so, with 1 when that changes.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet neurokit2==0.3.0
cat > "$tmp/ask.py" <<'PY'
import sys
import warnings
from importlib.metadata import version

import numpy as np

warnings.filterwarnings("ignore")
import neurokit2 as nk

leads = nk.ecg_simulate(duration=10, sampling_rate=500, method="multileads", random_state=1)
lead = {name: leads[name].to_numpy() for name in leads}
first, second = lead["I"], lead["II"]
law = {"III": second - first, "aVR": -(first + second) / 2, "aVL": first - second / 2, "aVF": second - first / 2}
print("neurokit2", version("neurokit2"), "leads", list(leads))
share = {}
for name, value in law.items():
    off, high = np.abs(lead[name] - value).max(), np.abs(lead[name]).max()
    share[name] = off / high
    print(f"{name}: up to {off:.2f} mV from the law, at a height of {high:.2f} mV")
sys.exit(0 if min(share.values()) > 0.2 else 1)
PY
"$tmp/venv/bin/python" "$tmp/ask.py"

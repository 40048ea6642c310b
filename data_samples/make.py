"""Makes the sample cohort in this folder: python data_samples/make.py

The same version of the kit on the same machine gives the same bytes.
"""
from pathlib import Path

from ptacl.cohort import write_cohort
from ptacl.virtual import simulate

N, SEED, SIZE, FRAMES = 12, 2025, 104, 50

if __name__ == "__main__":
    cohort = write_cohort(simulate(N, seed=SEED, size=SIZE, frames=FRAMES), Path(__file__).parent, overwrite=True)
    print(f"{cohort} in {Path(__file__).parent.name}")

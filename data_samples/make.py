"""Makes the sample cohort in this folder: python data_samples/make.py

The same version of the kit on the same machine gives the same bytes.
"""
from pathlib import Path

from ptacl.simulate.patients import simulate
from ptacl.simulate.writers import write_patients

N, SEED, SIZE, FRAMES = 12, 2025, 104, 50

if __name__ == "__main__":
    folder = Path(__file__).parent
    write_patients(simulate(N, seed=SEED, size=SIZE, frames=FRAMES), folder, "nifti", overwrite=True)
    print(f"{N} virtual patients in {folder.name}")

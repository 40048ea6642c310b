"What all tests share: paths, the thread count and how hard hypothesis tries."
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))

quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile("quick", max_examples=15, deadline=None, derandomize=True, suppress_health_check=quiet)
settings.register_profile("thorough", max_examples=300, deadline=None, suppress_health_check=quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session")
def root() -> Path:
    "The top folder of the project."
    return ROOT


@pytest.fixture(scope="session")
def data_samples(root) -> Path:
    "The small cohort that travels with the kit."
    return root / "data_samples"


@pytest.fixture(scope="session")
def shared_real(root) -> Path:
    "Recordings of real hearts, which lie outside the project; tests that want them are skipped elsewhere."
    folder = root.parent / "shared" / "real"
    if not folder.is_dir(): pytest.skip("no real recordings beside the project (../shared/real)")
    return folder

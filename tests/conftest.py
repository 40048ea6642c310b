"What all tests share: an empty home, paths, the thread count, how hard hypothesis tries, and a browser."
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import gettempdir, mkdtemp

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))

quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile("quick", max_examples=15, deadline=None, derandomize=True, suppress_health_check=quiet)
settings.register_profile("thorough", max_examples=300, deadline=None, suppress_health_check=quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


# files whose tests share nothing that is dear: each goes to the worker that is free
APART = {"test_fuzz.py", "test_house.py", "test_modalities.py", "test_scaling.py", "test_studies.py", "test_training.py", "test_typed.py"}

HOME, BEFORE = pytest.StashKey[str](), pytest.StashKey[dict]()
# where programs look for settings and keep what they made: variable -> folder of the home
PLACES = {"HOME": "", "USERPROFILE": "", "APPDATA": "roaming", "LOCALAPPDATA": "local", "WIN_PD_OVERRIDE_LOCAL_APPDATA": "local",
          "XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache", "XDG_DATA_HOME": ".local/share", "XDG_STATE_HOME": ".local/state",
          "JUPYTER_CONFIG_DIR": ".jupyter", "JUPYTER_DATA_DIR": ".local/share/jupyter", "JUPYTER_RUNTIME_DIR": ".local/share/jupyter/runtime",
          "IPYTHONDIR": ".ipython", "MPLCONFIGDIR": ".config/matplotlib", "HF_HOME": ".cache/huggingface", "TORCH_HOME": ".cache/torch"}


def pytest_addoption(parser):
    parser.addoption("--reverse", action="store_true", help="the last test first: what holds in one order alone relies on another test")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if config.getoption("reverse"): items.reverse()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file stays with one worker, so that what its tests share is made once: a site, a run, a server.
    (Marks of groups would say so, but pytest-xdist 3.8 writes them where pytest 9.2 does not look.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid): return together(nodeid)
    return ByFile(config, log)


def together(nodeid):
    "What a test stays together with: its file, or itself."
    file = nodeid.split("::")[0]
    return nodeid if Path(file).name in APART else file


def pytest_configure(config):
    "An empty home for this process and all that it starts, before a test is imported: matplotlib looks for its cache by then."
    config.stash[HOME] = mkdtemp(prefix="ptacl-home-")
    config.stash[BEFORE] = {name: os.environ.get(name) for name in PLACES}
    os.environ.update({name: os.path.join(config.stash[HOME], folder) for name, folder in PLACES.items()})


def pytest_unconfigure(config):
    for name, value in config.stash[BEFORE].items(): os.environ.pop(name) if value is None else os.environ.update({name: value})
    shutil.rmtree(config.stash[HOME], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def home(pytestconfig) -> Path:
    "The empty home. Nothing reaches the real one."
    assert Path.home() == Path(pytestconfig.stash[HOME])
    return Path.home()


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


FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
NAMES = ("chromium", "chromium-browser", "google-chrome")


def install_chromium() -> str: # why it could not be
    "Debian's package, by root."
    if not shutil.which("apt-get") or getattr(os, "geteuid", lambda: 1)() != 0: return "only root can install Debian's package"
    subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
    done = subprocess.run(["apt-get", "install", "-qq", "--no-install-recommends", "chromium"], capture_output=True, text=True,
                          env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    return f"apt-get says: {' '.join((done.stderr or done.stdout).strip().splitlines()[-1:])}"


@pytest.fixture(scope="session")
def chromium() -> dict:
    "How playwright launches Chromium, which is installed if need be; tests that want it are skipped where that cannot be."
    def there(): return next(filter(None, map(shutil.which, NAMES)), None)
    with FileLock(Path(gettempdir()) / "ptacl-chromium.lock"): why = "" if there() else install_chromium() # one of several workers
    return {"executable_path": there() or pytest.skip(f"no Chromium: apt-get install chromium ({why})"), "args": FLAGS}

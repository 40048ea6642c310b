"Processes that work for another one: they end with it, run no script again, and share what they have loaded."
import os
import subprocess
import sys
import time
from pathlib import Path

import joblib
import psutil
import pytest

SHORT = 300  # s, for what takes some on a quiet machine


def until(true, seconds: float = SHORT):
    "Wait for what should come."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def begun(folder: Path, text: str, **options) -> subprocess.Popen:
    "A script of somebody who never heard of `if __name__`."
    script = folder / "script.py"
    script.write_text(text)
    return subprocess.Popen([sys.executable, str(script)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_script_without_a_guard_is_run_once(tmp_path):
    "And what is imported while a worker begins stays imported: a second copy of a module has other exceptions."
    script = begun(tmp_path, """
import joblib, sys
from ptacl.core.workers import shared_out
print("begun", flush=True)
print(sorted(shared_out([joblib.delayed(lambda x: x * x)(k) for k in range(4)], 2)))
print(vars(sys.modules["__main__"]) is globals(), any(name.startswith("multiprocessing.popen_") for name in sys.modules))
""")
    said, wrong = script.communicate(timeout=SHORT)
    assert said.splitlines() == ["begun", "[0, 1, 4, 9]", "True True"], wrong


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = begun(tmp_path, """
import joblib, time
from ptacl.core.workers import shared_out
for done in shared_out([joblib.delayed(time.sleep)(s) for s in (0.1, 0.1, 600, 600)], 2):
    print("one is done", flush=True)
""")
    assert script.stdout.readline()
    family = psutil.Process(script.pid).children(recursive=True)
    assert len(family) >= 2
    script.kill()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_what_was_not_begun_is_dropped_at_an_interrupt(tmp_path):
    script = begun(tmp_path, """
import joblib, pathlib, signal, time
from ptacl.core.workers import shared_out
signal.signal(signal.SIGINT, signal.default_int_handler)      # who runs the tests may not hear it
def work(k):
    pathlib.Path(f"done-{k}").touch(); time.sleep(0.5)
try:
    for done in shared_out([joblib.delayed(work)(k) for k in range(200)], 2):
        print("one is done", flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
""", start_new_session=True)
    assert script.stdout.readline()
    os.killpg(script.pid, 2)                                  # as a terminal does
    said, wrong = script.communicate(timeout=SHORT)
    assert said.endswith("stopped\n") and "Traceback" not in wrong, wrong
    assert len(list(tmp_path.glob("done-*"))) < 20


def test_what_a_worker_raises_comes_back_and_a_dead_one_is_told(tmp_path):
    script = begun(tmp_path, """
import joblib, os
from ptacl.core.errors import PtaclError
from ptacl.core.workers import shared_out
def fail(k):
    raise PtaclError("no good", "Leave it out", where=str(k))
def die(k):
    os._exit(1)
for function in (fail, die):
    try:
        list(shared_out([joblib.delayed(function)(k) for k in range(2)], 2, "Take fewer"))
    except PtaclError as e:
        print(e.reason, "-", e.remedy, flush=True)
""")
    said, wrong = script.communicate(timeout=SHORT)
    why = "a worker stopped (BrokenProcessPool), perhaps for lack of memory or space on disk"
    assert said.splitlines() == ["no good - Leave it out", f"{why} - Take fewer"], wrong


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each loads for itself")
def test_workers_are_copies_of_one_that_has_loaded(tmp_path):
    script = begun(tmp_path, """
import joblib, sys
from ptacl.core.workers import expect_workers, shared_out
def loaded(k):
    return "ptacl.data.prepare" in sys.modules
expect_workers("ptacl.data.prepare")
print(all(shared_out([joblib.delayed(loaded)(k) for k in range(4)], 2)), "ptacl.data.prepare" in sys.modules)
""")
    said, wrong = script.communicate(timeout=SHORT)
    assert said == "True False\n", wrong


def test_where_no_worker_lives_no_file_is_to_blame(monkeypatch):
    "What ends every worker, as a library that is missing, is said once, not of each file."
    from ptacl.core import workers
    from ptacl.core.errors import PtaclError
    from ptacl.inference.screening import in_order
    monkeypatch.setattr(workers, "_begin_worker", os.abort)
    calls = [joblib.delayed(abs)(k) for k in range(5)]
    for results in (workers.shared_out(calls, 2, instead=str), in_order(abs, range(5), 2)):
        with pytest.raises(PtaclError, match="a worker stopped"): list(results)

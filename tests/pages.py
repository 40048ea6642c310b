"Servers that a test starts and pages that it looks at: what the tests in a browser share. Waits are for machines on which much else runs."
import os
import socket
import subprocess
import time
from contextlib import contextmanager
from urllib.parse import urlparse

import psutil
from playwright.sync_api import sync_playwright


@contextmanager
def browser(chromium, **context):
    "A page and the hosts that it asked for anything."
    with sync_playwright() as p:
        b = p.chromium.launch(**chromium)
        page, hosts = b.new_context(viewport={"width": 1400, "height": 950}, accept_downloads=True, **context).new_page(), set()
        page.context.on("request", lambda r: hosts.add(urlparse(r.url).hostname or urlparse(r.url).scheme))
        page.set_default_timeout(300_000)
        try: yield page, hosts
        finally: b.close()


def only_here(hosts): assert hosts <= {"127.0.0.1", "localhost", "blob", "data", "file"}, hosts


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


def command_of(process):
    "Its command line; nothing of a process that has ended since it was listed, reaped or not."
    try: return process.cmdline()
    except psutil.Error: return []


def descendants(pid):
    "The processes it has started and that they have started; none where it has ended since."
    try: return psutil.Process(pid).children(recursive=True)
    except psutil.Error: return []


def wait_until(true, seconds=300):
    started = time.time()
    while not true():
        assert time.time() - started < seconds
        time.sleep(0.3)


@contextmanager
def server(command, port, folder, **env):
    "A process that serves on a port, until the block ends."
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
                                   start_new_session=True)
        try:
            for _ in range(1500):
                with socket.socket() as s:
                    if s.connect_ex(("127.0.0.1", port)) == 0: break
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.2)
            yield
        finally:
            started = descendants(process.pid)  # the server, its kernels
            process.terminate()
            try: process.wait(60)
            finally:
                left = psutil.wait_procs(started, 10)[1]
                for p in [*left, process]: p.kill()
        assert not left, f"still there: {[command_of(p)[:3] for p in left]}"

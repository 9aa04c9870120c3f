"""Run the tests of the kernels as arm64 code on an x86-64 Linux machine, under emulation.

    python -m tools.test_arm64 --work ~/arm64                       # everything, with the dot product and without
    python -m tools.test_arm64 --work ~/arm64 --variants dotprod -- tests/simd -k tile

The first run sets the work folder up and later ones find it there: an arm64 Python out of Debian's packages (unpacked,
nothing is installed), qemu's user emulator, and the aarch64 wheels of what the package needs. So it needs a Debian or
Ubuntu with apt-get and dpkg, and the network for that first run. Compiled kernels stay in the folder too.

Everything that compiles or computes is emulated: numba, LLVM and the machine code that comes out. What is not shown
is how fast that code is.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
#: NUMBA_CPU_FEATURES of each variant; the processor is one that has no dot product of its own.
VARIANTS = {"dotprod": "+dotprod", "plain": ""}
PROCESSOR = "cortex-a72"
#: Where packages that fit a Debian or Ubuntu of today's age are built for.
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
#: Every op of `simd`, every kernel of the CPU backend in every kind of weight and cache, threads, a whole model of each
#: golden architecture, machine code as it is kept; of the rest only what handles bytes, for the wheels it stands on.
TESTS = (
    "tests/simd",
    "tests/backends/cpu/test_norm.py",
    "tests/backends/cpu/test_rope.py",
    "tests/backends/cpu/test_activation.py",
    "tests/backends/cpu/test_linear.py",
    "tests/backends/cpu/test_linear_refine.py",
    "tests/backends/cpu/test_linear_next.py",
    "tests/backends/cpu/test_best.py",
    "tests/backends/cpu/test_packing.py",
    "tests/backends/cpu/test_cache.py",
    "tests/backends/cpu/test_attention.py",
    "tests/backends/cpu/test_team.py",
    "tests/backends/cpu/test_model.py",
    "tests/backends/cpu/test_native.py",
    "tests/backends/cpu/test_jit_shared.py",
    "tests/formats/test_packings.py",
)
#: Variants of the same tests in processes of their own, and stopwatches, which emulation makes meaningless.
SKIPPED = "not elsewhere and not every_isa and not without_the_jit and not within_a_quarter and not exits_at_once"


class SetupError(Exception):
    """The work folder could not be set up; the text says what was missing."""


def _run(command: list[str], **options: object) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise SetupError(f"{' '.join(command[:3])} ... failed:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")


class Machine:
    """The emulated machine in a folder: `qemu` runs `python` in `root`, with the packages of `site`."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.root, self.site, self.wrapper = work / "root", work / "site", work / "python"

    @property
    def python(self) -> Path:
        """The arm64 interpreter. Raises `SetupError`."""
        found = sorted(path for path in (self.root / "usr/bin").glob("python3.*") if path.suffix[1:].isdigit())
        if not found:
            raise SetupError(f"no Python came with Debian's packages into {self.root}")
        return found[0]

    @property
    def qemu(self) -> Path | None:
        """The emulator: the system's own, or the one unpacked here."""
        system, own = shutil.which("qemu-aarch64-static"), self.work / "qemu/usr/bin/qemu-aarch64-static"
        return Path(system) if system else own if own.exists() else None

    def set_up(self) -> None:
        """Fetch and unpack what is not there yet. Raises `SetupError`."""
        for tool in ("apt-get", "dpkg"):
            if not shutil.which(tool):
                raise SetupError(f"{tool} is needed: this works on Debian and Ubuntu")
        self.work.mkdir(parents=True, exist_ok=True)
        if self.qemu is None:
            print("fetching qemu ...", flush=True)
            self._unpack("amd64", ["qemu-user-static"], self.work / "qemu", "download")
        if not self.root.is_dir():
            print("fetching an arm64 Python ...", flush=True)
            self._unpack("arm64", ["python3", "libstdc++6"], self.root, "-y", "--download-only", "install")
            if not (self.root / "lib").exists():  # packages of newer systems have nothing beside usr
                (self.root / "lib").symlink_to("usr/lib")
        if not self.site.is_dir():
            print("fetching aarch64 wheels ...", flush=True)
            self._install_wheels()
        self._write_wrapper()

    def _unpack(self, architecture: str, packages: list[str], target: Path, *get: str) -> None:
        """What apt gets, into `target`; it works in folders of its own, where nothing counts as installed."""
        apt = self.work / f"apt-{architecture}"
        archives = apt / "cache/archives"
        for folder in (apt / "state/lists/partial", archives / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        (apt / "status").touch()
        options = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "Dir::State": apt / "state",
            "Dir::State::status": apt / "status",
            "Dir::Cache": apt / "cache",
            "Debug::NoLocking": "true",
            "APT::Install-Recommends": "false",
        }
        command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
        _run([*command, "update"])
        _run([*command, *get, *packages], cwd=archives)
        unpacked = target.with_name(target.name + ".part")
        shutil.rmtree(unpacked, ignore_errors=True)
        for archive in sorted(archives.glob("*.deb")):
            _run(["dpkg", "-x", str(archive), str(unpacked)])
        unpacked.rename(target)

    def _install_wheels(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wanted = [*project["dependencies"], "pytest>=8", "hypothesis>=6.100"]
        version = self.python.name.removeprefix("python")
        platforms = [option for name in PLATFORMS for option in ("--platform", name)]
        target = self.work / "site.part"
        shutil.rmtree(target, ignore_errors=True)
        where = ["--target", str(target), "--only-binary=:all:", "--python-version", version, *platforms]
        _run([sys.executable, "-m", "pip", "install", "-q", "--no-compile", *where, *wanted])
        target.rename(self.site)

    def _write_wrapper(self) -> None:
        """A script that starts the emulated Python; `sys.executable` names it, so that tests can start processes."""
        command = f'exec "{self.qemu}" -cpu max -L "{self.root}" "{self.python}" "$@"'
        self.wrapper.write_text(f"#!/bin/sh\n{command}\n")
        self.wrapper.chmod(0o755)
        (self.site / "sitecustomize.py").write_text(f"import sys\n\nsys.executable = {str(self.wrapper)!r}\n")

    def environ(self, variant: str) -> dict[str, str]:
        """Of a process on this machine, compiling for `variant` of `VARIANTS`."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "EDGELLM_", "PYTHON"))
        }
        return {
            **kept,
            "NUMBA_CPU_NAME": PROCESSOR,
            "NUMBA_CPU_FEATURES": VARIANTS[variant],
            "EDGELLM_CACHE_DIR": str(self.work / "jit"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join((str(self.site), str(ROOT))),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def run_tests(machine: Machine, variant: str, arguments: list[str], timeout_s: float) -> int:
    """pytest with `arguments` on the machine; its exit code, 124 where time ran out. Prints a line of figures."""
    environ = machine.environ(variant)
    shown = "from edgellm.simd import TARGET; print(TARGET.isa, TARGET.vector_bytes)"
    isa = subprocess.run(
        [machine.wrapper, "-c", shown], env=environ, cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(f"{variant}: {isa.stdout.strip() or isa.stderr[-2000:]}", flush=True)
    if isa.returncode:
        return isa.returncode
    command = [str(machine.wrapper), "-m", "pytest", "-p", "no:cacheprovider", "--durations=15", *arguments]
    started, tail = time.monotonic(), []
    with subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        # a test that hangs prints nothing, so the end comes from another thread than the one that reads
        alarm = threading.Timer(timeout_s, process.kill)
        alarm.start()
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                tail.append(line)
            code = process.wait()
        finally:
            alarm.cancel()
    if code < 0 and time.monotonic() - started >= timeout_s:
        code = 124
    found = re.findall(r"\d+ (?:passed|failed|skipped|deselected|errors?)", "".join(tail[-3:]))
    print(
        f"{variant}: exit code {code}, {', '.join(found) or 'no end'}, {time.monotonic() - started:.0f} s", flush=True
    )
    return code


def main() -> int:
    """Set up, run every variant that was asked for; 0 if all tests of all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the emulated machine (900 MB)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--timeout", type=float, default=3 * 3600, metavar="SECONDS", help="of a variant")
    parser.add_argument("tests", nargs="*", help="arguments for pytest instead of the usual selection")
    given = parser.parse_args()
    machine = Machine(given.work.resolve())
    try:
        machine.set_up()
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    arguments = given.tests or ["-vv", *TESTS, "-k", SKIPPED]
    codes = [run_tests(machine, variant, arguments, given.timeout) for variant in given.variants]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())

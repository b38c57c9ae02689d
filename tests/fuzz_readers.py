"""Many mutated scan files through the readers: `make fuzz`.

Each batch runs in a process of its own, so that a crash of a C library, a hang or a file that takes too much memory is
found and its seed is named. One is known that only the HDF5 library itself can mend (1.14.6): with `--first 54625
--count 1` it does not come to an end while it opens a virtual dataset whose list of sources is damaged.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

FILES_PER_PROCESS = 250
SECONDS_PER_FILE = 20
MEMORY_BYTES = 3 << 30


def read_mutated_files(first: int, count: int) -> None:
    import faulthandler

    from scan_files import make_cases, mutate, read_all, write_files

    sys.addaudithook(_no_pickle)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    every = make_cases()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            sys.stdout.write(f"{seed}\n")
            sys.stdout.flush()
            faulthandler.dump_traceback_later(SECONDS_PER_FILE, exit=True)
            draw = random.Random(seed)
            case = draw.choice(every)
            with write_files(mutate(case, draw), Path(folder)):
                read_all(case, Path(folder))
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if now - peak > 200 << 10:
                raise MemoryError(f"{case.name}: a file of some kB took {(now - peak) >> 10} MiB")
            peak = now


def _no_pickle(event: str, _: object) -> None:
    if event == "pickle.find_class":
        raise AssertionError("a pickle was opened")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--batch", action="store_true", help="run the seeds in this process")
    options = parser.parse_args()
    if options.batch:
        read_mutated_files(options.first, options.count)
        return 0
    failed = []
    first, end = options.first, options.first + options.count
    while first < end:
        count = min(FILES_PER_PROCESS, end - first)
        command = [sys.executable, __file__, "--batch", "--first", str(first), "--count", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = int(done.stdout.split()[-1]) if done.stdout.split() else first
        if done.returncode:
            failed.append(last)
            print(f"seed {last}: exit code {done.returncode}\n{done.stderr[-2000:]}")
            first = last + 1
        else:
            first += count
    print(f"{options.count} files, {len(failed)} failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

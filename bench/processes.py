"""One process per part of a benchmark, a few side by side, one thread each."""
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor


def each(
    parts,   # lists of words; a part is this very command with `--one` and its words
    jobs,    # processes side by side
):
    "Run every part; the first that fails stops the benchmark, finished ones are kept by their run folders"
    with ThreadPoolExecutor(jobs) as pool: list(pool.map(lambda words: subprocess.run([sys.executable, *sys.argv, '--one', *map(str, words)], check=True), parts))

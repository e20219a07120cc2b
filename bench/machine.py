"""What a benchmark ran on, for its record."""
import os
import platform
import sys
from pathlib import Path


def cpu():
    "Name of the processor"
    info = Path('/proc/cpuinfo')
    names = [line.partition(': ')[2] for line in info.read_text().splitlines() if line.startswith('model name')] if info.exists() else []
    return names[0] if names else platform.processor()


def machine():
    "Versions, processor, cores and how busy it was"
    from moddist.runs import environment
    return environment() | dict(system=platform.system(), cpu=cpu(), cores=os.cpu_count(), load=[round(x, 1) for x in os.getloadavg()])


def command(hide=()):
    "The line that made a record, without what changes no number: where runs and records lie, and how many at once"
    words, out = sys.argv[1:], ['python', f'bench/{Path(sys.argv[0]).name}']
    while words:
        if words[0] in ('--runs', '--out', '--jobs'): words = words[2:]; continue
        out.append('FOLDER' if words[0] in hide else words[0])
        words = words[1:]
    return ' '.join(out)

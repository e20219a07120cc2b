"""Fails when cleaning or exporting the notebooks changed a file of the checkout: run after nbdev-clean and nbdev-export."""
import os
import subprocess
import sys

changed = subprocess.run(['git', 'status', '--porcelain', '--', 'nbs', 'moddist', 'pyproject.toml'], capture_output=True, text=True, check=True).stdout
if changed:
    print(changed, subprocess.run(['git', 'diff', '--stat'], capture_output=True, text=True).stdout)
    message = 'notebooks and modules are not in step: run nbdev-export && nbdev-clean and commit the notebook with its module'
    if os.environ.get('CI'): sys.exit(message)
    print('warning:', message)

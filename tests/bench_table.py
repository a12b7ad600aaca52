"""Runs a command that prints one JSON line per figure, and prints them as a table."""

import json
import subprocess
import sys

print(f"{'what':<44} {'figure':>12}")
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)
for line in process.stdout:
    row = json.loads(line)
    print(f"{row['what']:<44} {row['value']:>12.4g} {row['unit']}", flush=True)
sys.exit(process.wait())

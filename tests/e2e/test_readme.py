"""The README's example is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def example() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    return str(block)


def test_the_example_is_about_twenty_lines() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 22


def test_the_example_finds_the_customer_it_has_just_committed(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(example(), "utf-8")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OUTBOX_")}
    for _ in range(2):  # and again, on the data of the first time
        done = subprocess.run(
            [sys.executable, str(script)], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "['customer-42']"

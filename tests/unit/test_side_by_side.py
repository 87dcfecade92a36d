"""Two runs of the tests at once."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import TEMPROOT


def test_a_run_that_begins_shuts_no_folder_of_another(tmp_path: Path) -> None:
    """PostgreSQL, which root has run as another user, would lose the folder that it works in."""
    temporary = Path(tempfile.gettempdir())
    ours = [above for above in (tmp_path, *tmp_path.parents) if above != temporary and above.is_relative_to(temporary)]
    for folder in ours:
        folder.chmod(0o711)
    (tmp_path / "test_nothing.py").write_text("def test_nothing(tmp_path):\n    pass\n")
    others = {name: value for name, value in os.environ.items() if name != TEMPROOT and not name.startswith("PYTEST_")}
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tmp_path, env=others, check=True
    )
    assert [folder for folder in ours if folder.stat().st_mode & 0o777 != 0o711] == []

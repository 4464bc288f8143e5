"""The wheel as a user gets it, built by way of the sdist and installed outside the checkout; what an import costs."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
HEAVY = ("torch", "torchvision", "diffusers", "transformers", "matplotlib", "accelerate", "lpips")


def run(*command: str | Path, cwd: Path) -> str:
    """The command's output, without the caller's PYTHONPATH; a failure shows what it printed."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def installed_name(path: Path) -> str:
    """`generators/order.py` -> `imgtok/generators/order.py`."""
    folder, _, rest = path.relative_to(ROOT).as_posix().partition("/")
    homes = {folder: package for package, folder in SETUPTOOLS["package-dir"].items()}
    return f"{homes[folder].replace('.', '/')}/{rest}"


def files(pattern: str) -> list[str]:
    """Names in site-packages of the files in the package folders that match."""
    folders = SETUPTOOLS["package-dir"].values()
    return sorted(installed_name(path) for folder in folders for path in (ROOT / folder).rglob(pattern))


def parents(names: list[str]) -> list[str]:
    return sorted({name.rpartition("/")[0].replace("/", ".") for name in names})


def can_build_here() -> bool:
    try:
        return int(version("setuptools").partition(".")[0]) >= 77
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy of what git has or would add, so that no other file helps and nothing is left behind."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    listed = run("git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT)
    for name in listed.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    isolation = ["--no-isolation"] if can_build_here() else []
    run(sys.executable, "-m", "build", *isolation, "--outdir", out, tree, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of a fresh environment with the wheel. A .pth file shows it the dependencies of this environment,
    whose own .pth files are not followed: an editable install of imgtok stays out of sight."""
    venv = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv)
    python = venv / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=venv)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=venv).strip()
    here = f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n"
    (Path(site) / "dependencies.pth").write_text(here, encoding="utf-8")
    return python


def test_every_folder_with_code_is_a_package_and_listed():
    assert parents(files("*.py")) == parents(files("__init__.py")) == sorted(SETUPTOOLS["packages"])


def test_the_wheel_holds_imgtok_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    (info,) = {name.partition("/")[0] for name in names} - {"imgtok"}
    assert info.endswith(".dist-info")
    assert sorted(name for name in names if name.endswith(".py")) == files("*.py")


def test_the_wheel_holds_data_types_and_licences(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    data = {name for name in names if name.startswith("imgtok/") and not name.endswith(".py")}
    assert data == {name for name in files("*.*") if not name.endswith((".py", ".pyc"))}
    emoji = {f"imgtok/data/emoji64/{name}" for name in ("index.csv", "noto.webp", "twemoji.webp", "fluent.webp")}
    assert emoji | {"imgtok/py.typed", "imgtok/data/photos/index.csv", "imgtok/data/photos/astronaut.jpg"} <= data
    assert {name.rpartition("/")[2] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}


@pytest.mark.parametrize("module", ["imgtok", "imgtok.generators", "imgtok.sample", "imgtok.train"])
def test_imports_come_from_the_wheel_beside_files_of_the_same_names(python, tmp_path, module):
    for name in ("train", "sample", "generators"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the user has this file')\n", encoding="utf-8")
    file = run(python, "-c", f"import {module}; print({module}.__file__)", cwd=tmp_path).strip()
    assert Path(file).resolve().is_relative_to(python.parents[1].resolve())


@pytest.mark.parametrize("launcher", ["script", "module"])
def test_the_command_line_starts(python, tmp_path, launcher):
    command = [python.with_name("imgtok")] if launcher == "script" else [python, "-m", "imgtok"]
    assert "reconstruct" in run(*command, "--help", cwd=tmp_path)


@pytest.mark.parametrize("code", ["import imgtok", "from imgtok.sample.cli import main; main(['--help'])"])
def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path, code):
    script = f"""if True:
    import sys
    try:
        {code}
    except SystemExit as stop:
        assert not stop.code
    found = [name for name in {HEAVY} if name in sys.modules]
    sys.exit(f"imported {{found}}" if found else 0)
    """
    run(sys.executable, "-c", script, cwd=tmp_path)

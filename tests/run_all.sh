#!/usr/bin/env bash
# The project's one test command: formatting, types, stubs, C++ tests under sanitizers, Python tests of the
# installed wheel on every ISA that this CPU has. Stops at the first step that fails and names it.
#
#     bash tests/run_all.sh
#
# Everything it makes lies in build/ and is used again by the next run. It installs what it needs into a virtual
# environment there; GoogleTest comes from apt where this is root on Debian, else through CMake's FetchContent.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What is tested must be the installed package, as a user runs it.
unset PYTHONPATH PYTHONHOME LFM_ENGINE_ISA OMP_NUM_THREADS
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
export OMP_WAIT_POLICY=passive # tests run side by side: spinning threads would take each other's cores

venv=build/test-venv
logs=build/test-logs
jobs=$(nproc)
workers=$((jobs < 4 ? jobs : 4)) # of pytest; each test may use two threads
without_needs=(bfcl-eval==2026.3.23 llama-index-core==0.14.25)
mkdir -p "$logs"

current="set-up"
begun=$SECONDS
log=""
exec 3>&1 # a step may fail where its output goes to a log
failed() {
  trap - ERR
  if [[ -n $log && -f $log ]]; then printf '\n' >&3 && tail -n 200 "$log" >&3; fi
  printf '\nFAILED: %s\n' "$current" >&3
  exit 1
}
trap failed ERR
trap 'current="$current (interrupted)"; failed' INT TERM

# quiet NAME COMMAND...: the output goes to a log, which is shown on failure.
quiet() {
  current=$1
  log="$logs/${1//[^a-zA-Z0-9]/_}.log"
  shift
  local from=$SECONDS
  printf '==> %s ... ' "$current"
  "$@" >"$log" 2>&1 </dev/null
  printf 'ok (%d s)\n' $((SECONDS - from))
  log=""
}

# shown NAME COMMAND...: the output is shown, and kept for the summary.
shown() {
  current=$1
  local file="$logs/${1//[^a-zA-Z0-9]/_}.log"
  shift
  printf '\n==> %s\n' "$current"
  "$@" </dev/null 2>&1 | tee "$file"
}

make_venv() {
  if ! "$venv/bin/python" -c "import sys, pip" 2>/dev/null; then
    rm -rf "$venv"
    python3 -m venv "$venv"
  fi
}

# Build needs are installed and isolation is left off, so that a second run compiles only what changed.
install_needs() {
  "$venv/bin/python" - >"$logs/needs.txt" <<'PYTHON'
import pathlib
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())
extras = project["project"]["optional-dependencies"]
needs = project["build-system"]["requires"] + project["project"]["dependencies"]
print(*needs, *extras["test"], *extras["eval"], *extras["dev"], "cmake>=3.21", "ninja", sep="\n")
PYTHON
  "$venv/bin/pip" install --quiet -r "$logs/needs.txt"
  # Checkers that ask for more than they need (see pyproject.toml), and a wheel that has nltk's data.
  "$venv/bin/pip" install --quiet --no-deps "${without_needs[@]}"
}

install_googletest() {
  if [[ -n $(find /usr/lib /usr/local/lib -name GTestConfig.cmake -print -quit) ]]; then return; fi
  if [[ $(id -u) == 0 ]] && command -v apt-get; then
    export DEBIAN_FRONTEND=noninteractive
    if apt-get update && apt-get install -y libgtest-dev; then return; fi
    echo "apt-get cannot install libgtest-dev: CMake will fetch GoogleTest"
  fi
}

build_wheel() {
  rm -rf build/wheels
  "$venv/bin/pip" wheel --no-build-isolation --no-deps --wheel-dir build/wheels .
  "$venv/bin/pip" install --force-reinstall --no-deps build/wheels/*.whl
  # From another folder, to see where a user's import goes.
  (cd build && test-venv/bin/python -c '
import lfm_engine, sysconfig
found, site = lfm_engine.__file__, sysconfig.get_path("platlib")
assert found.startswith(site), f"{found} is not the installed package in {site}"')
  check_needs
}

# pip check, but for the packages that were installed without what they ask for.
check_needs() {
  local name broken
  broken=$("$venv/bin/pip" check || true)
  for name in "${without_needs[@]}" "No broken"; do
    broken=$(grep -v "^${name%%=*} " <<<"$broken" || true)
  done
  echo "$broken"
  [[ -z $broken ]]
}

check_wheel_size() {
  local size
  size=$(stat -c %s build/wheels/*.whl)
  echo "wheel: $((size / 1000000)) MB"
  ((size < 60000000))
}

cpp_files() { find cpp tests/cpp -name '*.cc' -o -name '*.h'; }

check_clang_format() { cpp_files | xargs clang-format --dry-run --Werror; }

build_preset() {
  cmake --preset "$1" -DPython_EXECUTABLE="$PWD/$venv/bin/python"
  cmake --build --preset "$1" -j "$jobs"
}

quiet "virtual environment" make_venv
quiet "install what the tests need" install_needs
export VIRTUAL_ENV="$PWD/$venv" PATH="$PWD/$venv/bin:$PATH"
if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
quiet "GoogleTest" install_googletest

quiet "ruff check" ruff check .
quiet "ruff format" ruff format --check .
quiet "clang-format" check_clang_format
quiet "mypy" mypy

quiet "pip install ." build_wheel
quiet "wheel size" check_wheel_size
quiet "stub of _core" python tests/make_stubs.py --check

quiet "build the C++ tests, address and undefined behaviour sanitizers" build_preset asan
quiet "ctest asan" ctest --preset asan -j "$jobs"
quiet "build the C++ tests, release" build_preset release
quiet "ctest release" ctest --preset release -j "$jobs"

current="list of ISA levels"
isas=$(python -c 'from lfm_engine import _core; print(*_core.cpu_info()["isas"])')
for isa in $isas; do
  shown "pytest engine $isa" env LFM_ENGINE_ISA="$isa" python -m pytest -q -m engine -n "$workers"
done
shown "pytest" python -m pytest -q -n "$workers"

current="summary"
printf '\nAll steps passed in %d s.\n' $((SECONDS - begun))
for preset in asan release; do
  # ctest runs one program; GoogleTest's own line says how many tests that is.
  printf 'ctest, %s: %s; %s\n' "$preset" "$(grep 'tests passed' "$logs/ctest_$preset.log")" \
    "$(grep -a '^\[  PASSED  \]' "build/$preset/Testing/Temporary/LastTest.log")"
done
for isa in $isas; do
  printf 'pytest, LFM_ENGINE_ISA=%s: ' "$isa"
  tail -n 1 "$logs/pytest_engine_$isa.log"
done
tail -n 1 "$logs/pytest.log"

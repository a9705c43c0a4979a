# Sourced by test, check, demo and docs: makes .venv when it is missing and installs wanconv with its pinned test tools into it,
# again whenever pyproject.toml or constraints.txt changed or the clone moved. Leaves: $root, $venv.

set -euo pipefail
{ true <&0; } 2>/dev/null || exec </dev/null  # a closed stdin would hand its number to the next file opened
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv

fail() {
    echo "$*" >&2
    exit 3
}

inputs() {  # what an installation depends on
    echo "$root"
    "$venv/bin/python" --version
    cat "$root/pyproject.toml" "$root/constraints.txt"
}

make_venv() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "$python not found: wanconv needs Python 3.11 or newer (PYTHON=… names another one)."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "wanconv needs Python 3.11 or newer, and $python is $("$python" --version 2>&1). PYTHON=… names another one."
    echo "Making $venv with $("$python" --version)" >&2
    "$python" -m venv --clear "$venv" || fail "$python cannot make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)."
}

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
if ! inputs | cmp -s - "$venv/installed-from"; then
    echo "Installing wanconv and the tools of its tests and documentation into $venv (some minutes the first time)" >&2
    rm -f "$venv/installed-from"
    (cd "$root" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[test,docs]' -c constraints.txt) ||
        fail "pip could not install wanconv into $venv; its message is above."
    inputs >"$venv/installed-from"
fi

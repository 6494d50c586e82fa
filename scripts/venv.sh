# shellcheck shell=bash
# For scripts that source it, from the repository's root.

# make_venv REQUIREMENTS FOLDER [MINOR]
#
# Makes a Python environment in FOLDER and installs REQUIREMENTS into it, once; a finished one with the same requirements is left as
# it is. Needs Python 3.MINOR (10) or newer (PYTHON names it) and the network; fails with a sentence where one is missing.
make_venv() {
    local python=${PYTHON:-python3} minor=${3:-10} made=
    "$python" -c "import sys; sys.exit(sys.version_info < (3, $minor))" 2> /dev/null || {
        echo "$(basename "$0"): $python is missing or older than 3.$minor; name another with PYTHON=…" >&2
        return 1
    }
    if cmp -s "$1" "$2/installed.txt"; then return; fi
    echo "$(basename "$0"): installing $1 into $2 (once)" >&2
    if [ ! -e "$2" ]; then made=1; fi
    rm -f "$2/installed.txt"
    "$python" -m venv "$2" || return 1
    "$2/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir -r "$1" >&2 || {
        # What a full disk left unfinished only takes more of it. A folder that was there before may hold other things.
        if [ -n "$made" ]; then rm -rf "$2"; fi
        return 1
    }
    cp "$1" "$2/installed.txt" # last: an interrupted installation is begun again
}

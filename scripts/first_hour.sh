#!/usr/bin/env bash
# Makes docs/first-hour.md: the commands of a new user's first hour, what they print, and how long they take.
#
# usage: scripts/first_hour.sh [--minutes N] [--work DIR] [--out FILE]
#
# Makes 300 photograph-like images (scripts/first_hour_images.py says how) and runs the commands of README on them with
# the program in target/release (BEIT2 names another), which is built if it is not there. Default: 8 minutes, a temporary folder, and
# docs/first-hour.md. Needs python3 (3.11 or newer) with venv, and the network once for numpy and Pillow; FIRST_HOUR_PYTHON
# names a Python that has both.
set -euo pipefail
minutes=8 work= out=
while [ $# -gt 0 ]; do
    case $1 in
    --minutes) minutes=$2 ;;
    --work) work=$2 ;;
    --out) out=$2 ;;
    *)
        sed -n '2,11p' "$0" | cut -c3-
        exit 2
        ;;
    esac
    shift 2
done
root=$(cd "$(dirname "$0")/.." && pwd)
out=${out:-$root/docs/first-hour.md}
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work"
python=${FIRST_HOUR_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$work/.venv"
    "$work/.venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 pillow==13.0.0
    python=$work/.venv/bin/python
fi
program=${BEIT2:-$root/target/release/beit2}
[ -x "$program" ] || (cd "$root" && cargo build --release --bin beit2)
mkdir -p "$work/bin"
ln -sf "$program" "$work/bin/beit2"
"$python" "$root/scripts/first_hour_images.py" "$root/crates/beit2-quickstart-data/data" "$work/photos"
cd "$work"
PATH=$work/bin:$PATH "$python" "$root/scripts/first_hour.py" "$minutes" > page.md
mv page.md "$out"
echo "wrote $out"
